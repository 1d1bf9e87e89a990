"""The plan: order, fit, and a reason for each task that waits."""

from hypothesis import given
from hypothesis import strategies as st

from labd.scheduler import Demand, Node, Running, Snapshot, Start, Waiting, plan

NODE = Node("n1", "box", 4, 2)


def waiting(
    key: str, cpus: float = 1, gpus: float = 0, *, priority: int = 0, since: int = 0
) -> Waiting:
    return Waiting(key, priority, since, Demand(cpus, gpus))


def test_priority_comes_first_then_age() -> None:
    tasks = [
        waiting("late", since=9),
        waiting("early", since=1),
        waiting("urgent", since=99, priority=5),
    ]
    made = plan(Snapshot(tasks, [], [Node("n1", "box", 2, 0)]))
    assert [start.key for start in made.starts] == ["urgent", "early"]
    assert made.reasons == {"late": "waits for 1 CPU: box has 0 CPUs free"}


def test_a_request_larger_than_every_node_waits_and_says_for_what() -> None:
    made = plan(Snapshot([waiting("big", gpus=8), waiting("small")], [], [NODE]))
    assert made.starts == [Start("small", "n1")]
    assert (
        made.reasons["big"] == "waits for a node with 8 GPUs and 1 CPU: box has 2 GPUs and 4 CPUs"
    )


def test_who_holds_the_resources_is_named() -> None:
    made = plan(Snapshot([waiting("x", gpus=2)], [Running("y", "n1", Demand(1, 1))], [NODE]))
    assert (
        made.reasons["x"] == "waits for 2 GPUs and 1 CPU: box has 1 GPU and 3 CPUs free, used by y"
    )


def test_without_nodes_or_on_hold_nothing_starts() -> None:
    assert plan(Snapshot([waiting("x")], [], [])).reasons == {"x": "waits for the engine to start"}
    made = plan(Snapshot([waiting("x")], [], [NODE], hold="waits for disk space"))
    assert (made.starts, made.reasons) == ([], {"x": "waits for disk space"})


def test_fractions_of_a_gpu_add_up_to_one() -> None:
    tasks = [waiting(f"t{i}", 0.1, 0.1) for i in range(11)]
    made = plan(Snapshot(tasks, [], [Node("n1", "box", 100, 1)]))
    assert len(made.starts) == 10


def test_cpu_work_leaves_the_gpu_machine_alone_while_it_can() -> None:
    nodes = [NODE, Node("n2", "cpubox", 4, 0)]
    assert plan(Snapshot([waiting("x")], [], nodes)).starts == [Start("x", "n2")]


demands = st.builds(
    Demand, st.integers(1, 6).map(float), st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0])
)


@given(
    st.lists(st.tuples(demands, st.integers(-2, 2)), max_size=20),
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), max_size=4),
)
def test_nothing_is_overbooked_and_every_task_is_started_or_has_a_reason(
    tasks: list[tuple[Demand, int]], machines: list[tuple[int, int]]
) -> None:
    queue = [Waiting(f"t{i}", priority, i, demand) for i, (demand, priority) in enumerate(tasks)]
    nodes = [Node(f"n{i}", f"n{i}", cpus, gpus) for i, (cpus, gpus) in enumerate(machines)]
    made = plan(Snapshot(queue, [], nodes))
    assert {s.key for s in made.starts} | set(made.reasons) == {w.key for w in queue}
    assert not {s.key for s in made.starts} & set(made.reasons)
    by_key = {w.key: w.demand for w in queue}
    for node in nodes:
        mine = [by_key[s.key] for s in made.starts if s.node_id == node.id]
        assert sum(d.num_cpus for d in mine) <= node.num_cpus + 1e-6
        assert sum(d.num_gpus for d in mine) <= node.num_gpus + 1e-6
