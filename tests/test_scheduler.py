"""The plan: order, fit, and a reason for each task that waits; the gates before it."""

import sys
from collections.abc import Sequence

import pytest

from labd.scheduler import (
    Backlog,
    Demand,
    Node,
    Plan,
    Running,
    Snapshot,
    Start,
    Waiting,
    gate,
    plan,
    retry_delay_s,
)

NODE = Node("n1", "box", 4, 2)


def waiting(
    key: str,
    cpus: float = 1,
    gpus: float = 0,
    *,
    priority: int = 0,
    since: int = 0,
    owner: str = "ann",
    seen_s: float = 1000,
) -> Waiting:
    return Waiting(key, priority, since, Demand(cpus, gpus), owner, seen_s)


def snapshot(
    tasks: Sequence[Waiting],
    running: Sequence[Running] = (),
    nodes: Sequence[Node] = (NODE,),
    *,
    usage: dict[str, float] | None = None,
    hold: str = "",
    reserved: dict[str, str] | None = None,
) -> Snapshot:
    """At the monotonic second 1000, with a patience of 600 s."""
    backlog = Backlog()
    for task in tasks:
        backlog.add(task)
    return Snapshot(
        backlog, running, nodes, usage or {}, 1000, 600, hold=hold, reserved=reserved or {}
    )


def keys(made: Plan) -> list[str]:
    return [start.key for start in made.starts]


def test_priority_comes_first_then_age() -> None:
    late = waiting("late", since=9)
    tasks = [late, waiting("early", since=1), waiting("urgent", since=99, priority=5)]
    made = plan(snapshot(tasks, nodes=[Node("n1", "box", 2, 0)]))
    assert keys(made) == ["urgent", "early"]
    assert made.reason(late) == "waits for its turn: 0 before it"


def test_the_owner_with_the_least_share_of_now_and_before_is_next() -> None:
    tasks = [waiting(f"{o}{i}", owner=o, since=i) for o in ("ann", "bob") for i in range(3)]
    one = [Node("n1", "box", 4, 0)]
    assert keys(plan(snapshot(tasks, nodes=one))) == ["ann0", "bob0", "ann1", "bob1"]
    held = [Running("x", "n1", Demand(2, 0), "ann")]
    assert keys(plan(snapshot(tasks, held, one))) == ["bob0", "bob1"]
    assert keys(plan(snapshot(tasks, held, one, usage={"bob": 0.3}))) == ["bob0", "ann0"]


def test_what_a_plan_gives_out_counts_in_all_classes_of_its_owner() -> None:
    tasks = [waiting("a1"), waiting("a2", 2, since=1), waiting("b", since=5, owner="bob")]
    assert keys(plan(snapshot(tasks), max_starts=2)) == ["a1", "b"]


def test_the_share_that_counts_is_the_larger_one_of_cpus_and_gpus() -> None:
    tasks = [waiting("a", owner="ann"), waiting("b", owner="bob", since=5)]
    box = [Node("n1", "box", 8, 4)]
    held = [Running("x", "n1", Demand(1, 2), "ann"), Running("y", "n1", Demand(3, 0), "bob")]
    assert keys(plan(snapshot(tasks, held, box), max_starts=1)) == ["b"]


def test_no_more_start_at_once_than_asked_for() -> None:
    tasks = [waiting(f"t{i}", since=i) for i in range(4)]
    made = plan(snapshot(tasks), max_starts=2)
    assert keys(made) == ["t0", "t1"]
    assert made.reason(tasks[3]) == "waits for its turn: 1 before it"


def test_a_small_task_passes_a_big_one_that_does_not_fit_yet() -> None:
    tasks = [waiting("big", gpus=2, seen_s=900), waiting("small", gpus=1, since=5)]
    made = plan(snapshot(tasks, [Running("x", "n1", Demand(1, 1))]))
    assert (keys(made), made.reserved) == (["small"], {})


def test_a_node_is_kept_free_for_a_big_one_that_waited_too_long() -> None:
    big, small = waiting("big", gpus=2, seen_s=280), waiting("small", gpus=1, since=5)
    cpu = waiting("cpu", since=6)
    made = plan(snapshot([big, small, cpu], [Running("x", "n1", Demand(1, 1), "bob", (0,))]))
    assert (keys(made), made.reserved) == (["cpu"], {"big": "n1"})
    assert (
        made.reason(big)
        == "waits for 2 GPUs: box has 1 free, 1 used by x; box is kept free for it"
    )
    assert made.reason(small) == "waits: box is kept free for big (waits for 2 GPUs since 12 min)"


def test_an_urgent_task_takes_a_node_that_is_kept_for_a_lesser_one() -> None:
    tasks = [waiting("big", gpus=2, seen_s=0), waiting("now", gpus=1, priority=1)]
    made = plan(snapshot(tasks, [Running("x", "n1", Demand(1, 1))], reserved={"big": "n1"}))
    assert (keys(made), made.reserved) == (["now"], {"big": "n1"})


def test_who_a_node_was_kept_for_starts_before_an_owner_with_less() -> None:
    tasks = [waiting("big", gpus=2, owner="ann", since=5), waiting("small", gpus=1, owner="bob")]
    used = {"ann": 0.9}
    assert keys(plan(snapshot(tasks, usage=used))) == ["small"]
    assert keys(plan(snapshot(tasks, usage=used, reserved={"big": "n1"}))) == ["big"]


def test_the_node_kept_free_is_the_one_with_the_least_to_wait_for() -> None:
    nodes = [Node("n1", "one", 8, 4), Node("n2", "two", 8, 4), Node("n3", "cpus", 64, 0)]
    held = [
        Running("x", "n1", Demand(1, 2), "bob", (0, 1)),
        Running("y", "n2", Demand(1, 1), "bob", (0,)),
        Running("z", "n3", Demand(64, 0), "bob"),
    ]
    tasks = [waiting("big", gpus=4, seen_s=0), waiting("wide", 32, since=1, seen_s=0)]
    made = plan(snapshot([*tasks, waiting("small", gpus=4)], held, nodes))
    assert made.reserved == {"big": "n2", "wide": "n3"}


def test_one_task_has_one_node_kept_free() -> None:
    nodes = [Node("n1", "one", 8, 2), Node("n2", "two", 8, 2)]
    held = [Running(f"x{i}", f"n{i}", Demand(1, 1), "bob", (0,)) for i in (1, 2)]
    tasks = [waiting("big", gpus=2, seen_s=0), waiting("small", gpus=1, since=1)]
    made = plan(snapshot(tasks, held, nodes, reserved={"big": "n1"}))
    assert (made.starts, made.reserved) == ([Start("small", "n2", (1,))], {"big": "n1"})


def test_a_node_is_kept_for_one_size_at_a_time_the_oldest_first() -> None:
    tasks = [waiting("big", gpus=2, seen_s=0), waiting("wide", 4, since=1, seen_s=0)]
    held = [Running("x", "n1", Demand(1, 1), "bob")]
    made = plan(snapshot([*tasks, waiting("small", gpus=1, since=2)], held))
    assert (keys(made), made.reserved) == ([], {"big": "n1"})


def test_lesser_tasks_are_among_the_smaller_ones_that_could_pass() -> None:
    tasks = [waiting("big", gpus=2, priority=1, seen_s=0), waiting("small", gpus=1)]
    made = plan(snapshot(tasks, [Running("x", "n1", Demand(1, 1))]))
    assert (keys(made), made.reserved) == ([], {"big": "n1"})


def test_a_promise_to_a_younger_task_of_a_class_does_not_pass_the_older() -> None:
    tasks = [waiting("t0"), waiting("t1", since=1)]
    assert keys(plan(snapshot(tasks, reserved={"t1": "n1"}), max_starts=1)) == ["t0"]


def test_a_kept_node_is_no_reason_for_those_who_may_pass_or_are_more_urgent() -> None:
    big, cpu = waiting("big", gpus=2, seen_s=0), waiting("cpu", since=1)
    urgent = waiting("urgent", gpus=1, priority=1)
    shot = snapshot([big, cpu, urgent], [Running("x", "n1", Demand(1, 1))], reserved={"big": "n1"})
    made = plan(shot, max_starts=0)
    assert made.reserved == {"big": "n1"}
    assert made.reason(urgent) == "waits for its turn: 0 before it"
    assert made.reason(cpu) == "waits for its turn: 2 before it"


def test_nothing_is_kept_free_where_nobody_smaller_could_pass() -> None:
    tasks = [waiting(f"t{i}", gpus=1, since=i, seen_s=0) for i in range(3)]
    made = plan(snapshot(tasks, [Running("x", "n1", Demand(1, 2), "bob")]))
    assert (keys(made), made.reserved) == ([], {})


def test_of_one_size_a_node_is_kept_for_the_owner_with_the_least_share() -> None:
    tasks = [waiting("a", gpus=2, seen_s=0), waiting("b", gpus=2, since=5, owner="bob")]
    held = [Running("x", "n1", Demand(1, 1), "ann")]
    made = plan(snapshot([*tasks, waiting("small", 4, since=9)], held))
    assert made.reserved == {"b": "n1"}


def test_a_request_larger_than_every_node_waits_and_says_for_what() -> None:
    big = waiting("big", gpus=8, seen_s=0)
    made = plan(snapshot([big, waiting("small")]))
    assert (made.starts, made.reserved) == ([Start("small", "n1")], {})
    assert made.reason(big) == "waits for a node with 8 GPUs and 1 CPU: box has 2 GPUs and 4 CPUs"


@pytest.mark.parametrize(
    ("cpus", "gpus", "reason"),
    [
        (1, 2, "waits for 2 GPUs: box has 1 free, 1 used by y"),
        (4, 0, "waits for 4 CPUs: box has 2 free, 2 used by y and z"),
        (3, 2, "waits for 2 GPUs and 3 CPUs: box has 1 GPU and 2 CPUs free, used by y and z"),
    ],
)
def test_what_is_short_and_who_has_it_is_named(cpus: float, gpus: float, reason: str) -> None:
    held = [Running("z", "n1", Demand(1, 0)), Running("y", "n1", Demand(1, 1))]
    x = waiting("x", cpus, gpus)
    assert plan(snapshot([x], held)).reason(x) == reason


def test_three_holders_are_named_and_the_others_counted() -> None:
    held = [Running(f"h{i}", "n1", Demand(0.1 + i / 10, 0)) for i in range(6)]
    x = waiting("x", 4)
    assert plan(snapshot([x], held)).reason(x).endswith("2.1 used by h5, h4, h3 and 3 more")


def test_free_pieces_of_several_gpus_are_not_one() -> None:
    held = [Running(f"h{i}", "n1", Demand(1, 0.5), "ann", (i,)) for i in range(2)]
    part, whole = waiting("part", 1, 0.75), waiting("whole", 1, 1)
    made = plan(snapshot([part, whole], held))
    assert (
        made.reason(part)
        == "waits for 0.75 GPUs: box has 0.5 free in one piece, 1 used by h0 and h1"
    )
    assert (
        made.reason(whole) == "waits for 1 GPU: box has 0 free in one piece, 1 used by h0 and h1"
    )


@pytest.mark.parametrize("gpus", [None, ()])
def test_a_fraction_on_an_unknown_device_leaves_one_device_less(
    gpus: tuple[int, ...] | None,
) -> None:
    held = [Running("x", "n1", Demand(1, 0.25), "bob", gpus)]
    tasks = [waiting("one", gpus=1), waiting("two", gpus=1, since=1)]
    assert keys(plan(snapshot(tasks, held))) == ["one"]
    single = [Node("n1", "box", 4, 1)]
    assert keys(plan(snapshot([waiting("part", gpus=0.75)], held, single))) == ["part"]


def test_the_node_that_is_named_is_the_one_with_the_least_missing() -> None:
    held = [Running("y", "n1", Demand(4, 0)), Running("z", "n2", Demand(3, 0))]
    x = waiting("x", 4)
    made = plan(snapshot([x], held, [NODE, Node("n2", "other", 4, 0)]))
    assert made.reason(x) == "waits for 4 CPUs: other has 1 free, 3 used by z"


def test_without_nodes_or_on_hold_nothing_starts() -> None:
    x = waiting("x")
    assert plan(snapshot([x], nodes=[])).reason(x) == "waits for the engine to start"
    made = plan(snapshot([x], hold="waits for disk space", reserved={"x": "n1"}))
    assert (made.starts, made.reason(x)) == ([], "waits for disk space")
    assert made.reserved == {"x": "n1"}


def test_the_turn_counts_all_that_wait_before_it_and_nothing_that_starts() -> None:
    tasks = [waiting(f"t{i:02}", since=i) for i in range(20)]
    tasks += [waiting("urgent", 2, priority=3), waiting("other", gpus=1, since=5, owner="bob")]
    shot = snapshot(tasks, nodes=[Node("n1", "box", 4, 0)])
    made = plan(shot)
    assert keys(made) == ["urgent", "t00", "t01"]
    assert made.reason(tasks[12]) == "waits for its turn: 11 before it"
    for start in made.starts:
        shot.backlog.discard(start.key)
    assert made.reason(tasks[12]) == "waits for its turn: 11 before it"


def test_classes_are_counted_and_bounded() -> None:
    tasks = [waiting(f"t{i:03}", 1 + i % 5, since=i) for i in range(100)]
    made = plan(snapshot(tasks, nodes=[Node("n1", "box", 6, 0)]))
    first, second = made.classes(2)
    assert (first.oldest, first.count, first.owner) == ("t003", 20, "ann")
    assert first.reason == "waits for its turn: 0 before it"
    assert (second.oldest, second.demand, second.count) == ("t004", Demand(5, 0), 20)
    assert [c.oldest for c in made.classes()] == ["t003", "t004", "t005", "t006", "t007"]


def test_a_class_that_starts_as_a_whole_is_none_that_waits() -> None:
    assert plan(snapshot([waiting("x"), waiting("y")])).classes() == []


def test_fractions_of_a_gpu_add_up_to_one() -> None:
    tasks = [waiting(f"t{i}", 0.1, 0.1) for i in range(11)]
    assert len(plan(snapshot(tasks, nodes=[Node("n1", "box", 100, 1)])).starts) == 10


def test_sums_of_fractions_are_not_held_against_a_task() -> None:
    tasks = [waiting(f"t{i}", part, part, since=i) for i, part in enumerate([0.1, 0.8, 0.1])]
    assert len(plan(snapshot(tasks, nodes=[Node("n1", "box", 1, 1)])).starts) == 3


def test_fractions_on_unknown_devices_are_not_thought_to_lie_well() -> None:
    parts = [0.5, 0.4, 0.3, 0.3, 0.3]  # on two devices perhaps 0.8 and 1.0, perhaps 0.9 each
    held = [Running(f"h{i}", "n1", Demand(0.1, part)) for i, part in enumerate(parts)]
    assert plan(snapshot([waiting("x", gpus=0.2)], held)).starts == []


def test_more_device_numbers_than_devices_leave_no_more_than_there_is() -> None:
    parts = [(0, 0.5), (5, 0.4), (6, 0.3)]
    held = [Running(f"h{gpu}", "n1", Demand(0.1, part), "ann", (gpu,)) for gpu, part in parts]
    assert plan(snapshot([waiting("x", gpus=0.65)], held)).starts == []


def test_devices_are_foretold_as_ray_gives_them() -> None:
    box = [Node("n1", "box", 100, 4)]
    small = [waiting(f"t{i}", 1, 0.25, since=i) for i in range(6)]
    assert [s.gpus for s in plan(snapshot(small, nodes=box)).starts] == [(0,)] * 4 + [(1,)] * 2
    large = [waiting(f"t{i}", 1, 0.6, since=i) for i in range(3)]
    assert [s.gpus for s in plan(snapshot(large, nodes=box)).starts] == [(0,), (1,), (2,)]
    whole = [waiting("t0", 1, 2), waiting("t1", 1, 2)]
    assert [s.gpus for s in plan(snapshot(whole, nodes=box)).starts] == [(0, 1), (2, 3)]


def test_device_numbers_need_not_begin_at_zero() -> None:
    held = [Running("x", "n1", Demand(1, 0.5), "ann", (7,))]
    tasks = [waiting("half", 1, 0.5), waiting("one", 1, 1, since=1)]
    assert [s.gpus for s in plan(snapshot(tasks, held)).starts] == [(7,), (0,)]


def test_cpu_work_leaves_the_gpu_machine_alone_while_it_can() -> None:
    nodes = [NODE, Node("n2", "cpubox", 4, 0)]
    assert plan(snapshot([waiting("x")], nodes=nodes)).starts == [Start("x", "n2")]


def test_gpu_work_fills_the_machine_with_the_fewest_gpus_left() -> None:
    nodes = [Node("n1", "one", 4, 4), Node("n2", "two", 8, 4)]
    held = [Running("y", "n2", Demand(1, 2), "ann", (0, 1))]
    assert plan(snapshot([waiting("x", gpus=1)], held, nodes)).starts == [Start("x", "n2", (2,))]


NOW = 1_795_420_800.0  # 2026-11-23 08:00 UTC


@pytest.mark.parametrize(
    ("not_before", "states", "retry_in_s", "reason"),
    [
        (None, {}, None, ""),
        (NOW, {"a": "done"}, 0.0, ""),
        (NOW + 3600, {"a": "failed"}, 5, "waits until 2026-11-23 09:00 UTC"),
        (NOW + 1, {}, None, "waits until 2026-11-23 08:01 UTC"),
        (None, {"a": "done", "b": "running"}, None, "waits for b, which is running"),
        (None, {"a": "pending"}, 5, "waits for a, which waits itself"),
        (
            None,
            {"a": "running", "b": "failed"},
            None,
            "waits for b, which failed: retry it or cancel this",
        ),
        (
            None,
            {"a": "cancelled"},
            None,
            "waits for a, which was cancelled: retry it or cancel this",
        ),
        (None, {"a": None}, None, "waits for a, which nobody has submitted"),
        (None, {}, 11.2, "waits 12 s before it is tried again"),
    ],
)
def test_a_gate_names_the_time_the_task_or_the_delay(
    not_before: float | None,
    states: dict[str, str | None],
    retry_in_s: float | None,
    reason: str,
) -> None:
    assert gate(NOW, not_before, list(states), states.get, retry_in_s) == reason


def test_each_loss_makes_the_wait_longer_up_to_five_minutes() -> None:
    assert [retry_delay_s(n) for n in range(7)] == [0, 1, 10, 60, 300, 300, 300]
    assert retry_delay_s(sys.maxsize) == 300
