"""The plan's promises in any world: what fits, what is passed over, who is next, and who is never forgotten."""

import math
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from labd.scheduler import (
    Backlog,
    Demand,
    Node,
    Plan,
    Running,
    Snapshot,
    Start,
    Waiting,
    decayed,
    plan,
)
from tests.simulation import Job, RayNode, Simulation

DEMANDS = st.builds(
    Demand,
    st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    st.sampled_from([0.0, 0.0, 0.25, 0.4, 0.5, 0.6, 1.0, 2.0, 4.0]),
)
NODES = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), min_size=1, max_size=3).map(
    lambda sizes: [
        Node(f"n{i}", f"n{i}", float(size[0]), float(size[1])) for i, size in enumerate(sizes)
    ]
)
AVOIDED = st.sampled_from([(), (), ("n1",), ("n0", "n1"), ("n0", "n1", "n2")]).map(frozenset)
CALM = settings(deadline=None)  # machines are slow at times
OWNERS = st.sampled_from(["ann", "bob", "cyd"])


class World(NamedTuple):
    """A snapshot, and what Ray would say about it."""

    snapshot: Snapshot
    tasks: dict[str, Waiting]
    ray: dict[str, RayNode]


@st.composite
def worlds(
    draw: st.DrawFn, *, told: bool = True, patient: bool = False, wide: bool = False
) -> World:
    nodes = draw(NODES)
    ray = {node.id: RayNode(node) for node in nodes}
    running = _history(draw, nodes, ray, told=told)
    backlog, tasks = Backlog(), {}
    drawn = st.tuples(st.integers(-1, 1), st.integers(0, 9), DEMANDS, OWNERS, st.integers(0, 100))
    for number, (priority, since, demand, owner, seen) in enumerate(
        draw(st.lists(drawn, max_size=15))
    ):
        task = Waiting(f"t{number}", priority, since, demand, owner, float(seen))
        if wide:
            avoiding = replace(demand, avoid=draw(AVOIDED))
            task = replace(task, demand=avoiding, num_nodes=draw(st.integers(1, 4)))
        tasks[task.key] = task
        backlog.add(task)
    usage = draw(st.dictionaries(OWNERS, st.floats(0, 1)))
    after = math.inf if patient else draw(st.sampled_from([0.0, 50.0, math.inf]))
    reserved = {}
    if tasks and not patient:
        pairs = st.dictionaries(
            st.sampled_from(sorted(tasks)), st.sampled_from([*ray, "gone"]), max_size=3
        )
        reserved = draw(pairs)
    snapshot = Snapshot(backlog, running, nodes, usage, 100.0, after, reserved=reserved)
    return World(snapshot, tasks, ray)


def _history(
    draw: st.DrawFn, nodes: list[Node], ray: dict[str, RayNode], *, told: bool
) -> list[Running]:
    """Let tasks start on and leave the nodes at random, as Ray places them, so that devices are in pieces."""
    held: list[tuple[Running, tuple[int, ...]]] = []
    for number, (demand, owner, leaves) in enumerate(
        draw(st.lists(st.tuples(DEMANDS, OWNERS, st.integers(-2, 5)), max_size=15))
    ):
        node = nodes[number % len(nodes)]
        if ray[node.id].would_take(demand) is not None:
            devices = ray[node.id].take(demand)
            task = Running(f"r{number}", node.id, demand, owner, devices if told else None)
            held.append((task, devices))
        if 0 <= leaves < len(held):
            task, devices = held.pop(leaves)
            ray[task.node_id].give_back(task.demand, devices)
    return [task for task, _devices in held]


def carried_out(world: World, made: Plan) -> dict[str, RayNode]:
    for start in made.starts:
        devices = world.ray[start.node_id].take(world.tasks[start.key].demand)
        if all(task.gpus is not None for task in world.snapshot.running):
            assert devices == start.gpus
    return world.ray


@CALM
@given(worlds())
def test_ray_gives_each_start_its_resources_at_once_on_the_devices_foretold(world: World) -> None:
    carried_out(world, plan(world.snapshot))


@CALM
@given(worlds(told=False))
def test_what_is_started_fits_even_when_nobody_knows_who_has_which_device(world: World) -> None:
    carried_out(world, plan(world.snapshot))


@CALM
@given(worlds())
def test_every_task_either_starts_once_or_has_a_reason(world: World) -> None:
    made = plan(world.snapshot)
    started = [start.key for start in made.starts]
    assert len(set(started)) == len(started)
    for task in world.tasks.values():
        assert (made.reason(task) == "") == (task.key in started)
    counted = sum(each.count for each in made.classes())
    assert counted == len(world.tasks) - len(started)


@CALM
@given(worlds())
def test_the_same_snapshot_gives_the_same_plan_and_stays_as_it_was(world: World) -> None:
    before = world.snapshot.backlog.first(100)
    one, two = plan(world.snapshot), plan(world.snapshot)
    assert (one.starts, one.reserved, one.classes()) == (two.starts, two.reserved, two.classes())
    assert [one.reason(t) for t in before] == [two.reason(t) for t in before]
    assert world.snapshot.backlog.first(100) == before


@CALM
@given(worlds())
def test_of_one_size_and_owner_the_urgent_and_the_older_start_first(world: World) -> None:
    started = {start.key for start in plan(world.snapshot).starts}
    same: defaultdict[tuple[str, Demand], list[Waiting]] = defaultdict(list)
    for task in world.tasks.values():
        same[task.owner, task.demand].append(task)
    for tasks in same.values():
        tasks.sort(key=lambda t: (-t.priority, t.since_ns, t.key))
        promised = [t for t in tasks if t.key in started and t.key in world.snapshot.reserved]
        flags = [t.key in started for t in tasks if t not in promised]
        assert flags == sorted(flags, reverse=True)


@CALM
@given(worlds(patient=True))
def test_nothing_that_fits_is_left_waiting(world: World) -> None:
    made = plan(world.snapshot)
    ray = carried_out(world, made)
    for task in world.tasks.values():
        if made.reason(task):
            assert not any(node.would_take(task.demand) is not None for node in ray.values())


@CALM
@given(worlds())
def test_what_fits_waits_only_for_the_sake_of_a_big_one(world: World) -> None:
    made = plan(world.snapshot)
    ray = carried_out(world, made)
    kept_by = {node_id: world.tasks[key] for key, node_id in made.reserved.items()}
    for task in world.tasks.values():
        if made.reason(task):
            fitting = [i for i, node in ray.items() if node.would_take(task.demand) is not None]
            assert all(kept_by[node_id].priority >= task.priority for node_id in fitting)
            assert not any(kept_by[node_id] is task for node_id in fitting)


@CALM
@given(worlds())
def test_a_node_is_kept_for_one_waiting_task_that_it_can_hold(world: World) -> None:
    made = plan(world.snapshot)
    assert len(set(made.reserved.values())) == len(made.reserved)
    ray = carried_out(world, made)
    nodes = {node.id: node for node in world.snapshot.nodes}
    for key, node_id in made.reserved.items():
        demand = world.tasks[key].demand
        assert key not in {start.key for start in made.starts}
        assert RayNode(nodes[node_id]).would_take(demand) is not None
        assert ray[node_id].would_take(demand) is None


@CALM
@given(worlds())
def test_who_starts_on_a_kept_node_leaves_there_what_it_is_kept_for(world: World) -> None:
    made = plan(world.snapshot)
    ray = carried_out(world, made)
    for key, node_id in made.reserved.items():
        kept = world.tasks[key]
        passing = [
            task.demand
            for start in made.starts
            if start.node_id == node_id and start.key not in world.snapshot.reserved
            for task in [world.tasks[start.key]]
            if task.priority <= kept.priority
        ]
        if passing:
            assert ray[node_id].cpus >= kept.demand.num_cpus - 1e-6
        if any(demand.num_gpus for demand in passing):
            assert ray[node_id].would_take(Demand(0, kept.demand.num_gpus)) is not None


def without_width(world: World) -> Snapshot:
    backlog = Backlog()
    for task in world.tasks.values():
        backlog.add(replace(task, num_nodes=1))
    return replace(world.snapshot, backlog=backlog)


def widened(world: World, made: Plan) -> list[tuple[Waiting, tuple[str, ...]]]:
    return [(world.tasks[start.key], start.also) for start in made.starts if start.also]


@settings(CALM, max_examples=60)
@given(st.booleans().flatmap(lambda told: worlds(told=told, wide=True)))
def test_further_nodes_give_all_that_they_have_left_to_those_who_asked_for_them(
    world: World,
) -> None:
    made = plan(world.snapshot)
    ray = carried_out(world, made)
    for task, also in widened(world, made):
        for node_id in also:
            ray[node_id].take(task.demand)
    known = all(task.gpus is not None for task in world.snapshot.running)
    for start in made.starts:
        task, has = world.tasks[start.key], {start.node_id, *start.also}
        barred = {*made.reserved.values(), *task.demand.avoid}
        assert len(has) == 1 + len(start.also) <= task.num_nodes
        assert not {*start.also} & barred
        if known and len(has) < task.num_nodes:
            left = [node for node_id, node in ray.items() if node_id not in has | barred]
            assert all(node.would_take(task.demand) is None for node in left)


@settings(CALM, max_examples=60)
@given(worlds(wide=True))
def test_who_waits_is_not_delayed_by_those_who_are_given_further_nodes(world: World) -> None:
    made, narrow = plan(world.snapshot), plan(without_width(world))
    assert [replace(start, also=()) for start in made.starts] == narrow.starts
    assert made.reserved == narrow.reserved
    ray = carried_out(world, made)
    taken = {node_id for _task, also in widened(world, made) for node_id in also}
    waits = [task.demand for task in world.tasks.values() if made.reason(task)]
    for node_id in taken:
        fitting = [one for one in waits if ray[node_id].would_take(one) is not None]
        assert all(node_id in demand.avoid for demand in fitting)


class BacklogMachine(RuleBasedStateMachine):
    """A backlog beside a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog, self.model = Backlog(), dict[str, Waiting]()

    @rule(
        key=st.sampled_from("abcdefgh"),
        priority=st.integers(-1, 1),
        since=st.integers(0, 3),
        demand=st.sampled_from([Demand(1, 0), Demand(1, 1)]),
        owner=OWNERS,
    )
    def add(self, key: str, priority: int, since: int, demand: Demand, owner: str) -> None:
        task = Waiting(key, priority, since, demand, owner)
        self.backlog.add(task)
        self.model[key] = task

    @rule(key=st.sampled_from("abcdefgh"))
    def discard(self, key: str) -> None:
        self.backlog.discard(key)
        self.model.pop(key, None)

    @invariant()
    def agrees(self) -> None:
        order = sorted(self.model.values(), key=lambda t: (-t.priority, t.since_ns, t.key))
        assert self.backlog.first(100) == order
        assert self.backlog.first(2) == order[:2]
        assert len(self.backlog) == len(order)
        assert [self.backlog.rank(task) for task in order] == list(range(len(order)))
        for key in "abcdefgh":
            assert self.backlog.get(key) == self.model.get(key)
            assert (key in self.backlog) == (key in self.model)
        lines = [line for p in self.backlog.priorities() for line in self.backlog.lines(p)]
        assert sum(map(len, lines)) == len(order)
        assert len({(ln[0].priority, ln[0].owner, ln[0].demand) for ln in lines}) == len(lines)


TestBacklog = BacklogMachine.TestCase
TestBacklog.settings = settings(CALM, max_examples=50, stateful_step_count=30)

SLOT = [Node("n", "n", 1, 0)]
BOX = [Node("n", "n", 8, 4)]
ONE_CPU, ONE_GPU, FOUR_GPUS = Demand(1, 0), Demand(1, 1), Demand(1, 4)


def test_two_owners_take_turns_on_one_slot_though_nothing_runs_when_it_comes_free() -> None:
    jobs = [Job(0, f"a{i:02}", 60, ONE_CPU, "ann") for i in range(10)]
    jobs += [Job(1, f"b{i:02}", 60, ONE_CPU, "bob") for i in range(10)]
    owners = [run.job.owner for run in Simulation(SLOT).play(jobs)]
    assert len(owners) == 20
    assert all(one != two for one, two in pairwise(owners))


def test_one_owner_alone_is_served_by_age() -> None:
    jobs = [Job(i, f"t{97 * i % 100:02}", 60, ONE_CPU) for i in range(50)]
    runs = Simulation(SLOT).play(jobs)
    assert [run.job.arrives_s for run in runs] == list(range(50))


@pytest.mark.parametrize("small", [False, True], ids=["one size", "smaller ones wait too"])
def test_an_owner_of_a_few_tasks_does_not_wait_behind_the_thousand_of_another(
    *, small: bool
) -> None:
    jobs = [Job(0, f"a{i:04}", 300, ONE_GPU, "ann") for i in range(1000)]
    rare = [Job(1000 + 3600 * i, f"b{i:04}", 300, ONE_GPU, "bob") for i in range(20)]
    bits = [Job(0, f"s{i:04}", 7000, Demand(0.5, 0), "ann") for i in range(50 if small else 0)]
    runs = Simulation([Node("n", "n", 4.5, 4)]).play([*jobs, *rare, *bits])
    assert len(runs) == 1020 + len(bits)
    waits_s = [run.waited_s for run in runs if run.job.owner == "bob"]
    assert max(waits_s) <= (
        600 if small else 300
    )  # the end of one task, or of one promised before
    if not small:  # and nothing was left idle meanwhile
        assert max(run.end_s for run in runs) == 1020 / 4 * 300


def stream(until_s: int, owner: str = "ann") -> list[Job]:
    return [Job(t, f"s{t:05}", 60 + t % 35, ONE_GPU, owner) for t in range(0, until_s, 10)]


def test_a_big_task_would_starve_without_a_node_kept_free() -> None:
    sim = Simulation(BOX, reserve_after_s=math.inf)
    runs = sim.play([*stream(7200), Job(100, "big", 60, FOUR_GPUS, "bob")])
    assert {run.job.key: run.start_s for run in runs}["big"] > 7200


@pytest.mark.parametrize("owner", ["ann", "bob"])
def test_a_big_task_starts_when_what_ran_at_its_reservation_has_ended(owner: str) -> None:
    sim = Simulation(BOX, reserve_after_s=300)
    sim.usage = {"bob": 1.0}  # the owner of the stream has the least share, and yet gives way
    runs = sim.play([*stream(7200), Job(100, "big", 60, FOUR_GPUS, owner)])
    big = next(run for run in runs if run.job.key == "big")
    assert sim.kept_at_s["big"] <= 100 + 300 + 10
    assert big.start_s <= sim.kept_at_s["big"] + 95


SMALL = st.builds(
    Demand, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.25, 0.4, 0.6, 1.0, 2.0])
)


@settings(CALM, max_examples=40)
@given(
    passers=st.lists(
        st.tuples(st.integers(0, 15), st.integers(5, 60), SMALL, OWNERS), max_size=150
    ),
    demand=st.builds(Demand, st.sampled_from([1.0, 8.0]), st.sampled_from([0.75, 1.0, 3.0, 4.0])),
    owner=OWNERS,
    told=st.booleans(),
)
def test_whatever_passes_by_a_kept_node_is_free_within_the_longest_task(
    passers: list[tuple[int, int, Demand, str]], demand: Demand, owner: str, *, told: bool
) -> None:
    now_s, jobs = 0.0, [Job(40, "big", 10, demand, owner)]
    for number, (gap_s, length_s, small, whose) in enumerate(passers):
        now_s += gap_s
        jobs.append(Job(now_s, f"s{number:03}", length_s, small, whose))
    sim = Simulation(BOX, reserve_after_s=30, tell_gpus=told)
    runs = sim.play(jobs)
    assert {run.job.key for run in runs} == {job.key for job in jobs}
    for run in runs:
        if run.job.key in sim.kept_at_s:
            assert run.start_s <= sim.kept_at_s[run.job.key] + 60


WHOLE = st.builds(Demand, st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.0, 0.0, 1.0, 2.0]))
PARTS = st.builds(Demand, st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.0, 0.25, 0.4, 1.0]))
"""Of nodes of one GPU: of several, nobody can tell which a part on a further node is of."""


@settings(CALM, max_examples=40)
@given(
    data=st.data(),
    parts=st.booleans(),
    jobs=st.lists(
        st.tuples(st.integers(0, 30), st.integers(5, 90), OWNERS, st.integers(1, 4)), max_size=60
    ),
)
def test_in_a_lab_of_wide_tasks_ray_never_lets_one_wait_and_each_has_its_turn(
    data: st.DataObject, jobs: list[tuple[int, int, str, int]], *, parts: bool
) -> None:
    nodes = [Node(f"n{i}", f"n{i}", 4, 1 if parts else 1 + i) for i in range(3)]
    sizes = PARTS if parts else WHOLE
    now_s, coming = 0.0, []
    for number, (gap_s, length_s, owner, num_nodes) in enumerate(jobs):
        now_s += gap_s
        size = data.draw(sizes)
        coming.append(Job(now_s, f"j{number:02}", length_s, size, owner, num_nodes=num_nodes))
    runs = Simulation(nodes, reserve_after_s=60).play(coming)
    assert {run.job.key for run in runs} == {job.key for job in coming}


def test_a_task_alone_in_the_lab_is_given_as_many_nodes_as_it_asked_for() -> None:
    nodes = [
        Node("n1", "a", 4, 1),
        Node("n2", "b", 2, 1),
        Node("n3", "c", 8, 0),
        Node("n4", "d", 8, 2),
    ]
    jobs = [Job(0, "wide", demand=Demand(3, 0.5), num_nodes=3)]
    [run] = Simulation(nodes).play(jobs)
    assert (run.node_id, run.also) == ("n1", ("n4",))
    [run] = Simulation(nodes).play([Job(0, "wide", demand=Demand(2, 0), num_nodes=2)])
    assert (run.node_id, run.also) == ("n3", ("n2",))
    jobs = [
        Job(0, "wide", demand=Demand(2, 0), num_nodes=3),
        Job(0, "early", demand=Demand(8, 0)),
    ]
    runs = {run.job.key: run for run in Simulation(nodes).play(jobs)}
    assert runs["early"].node_id == "n3"
    assert (runs["wide"].node_id, runs["wide"].also) == ("n2", ("n1", "n4"))


def test_what_a_plan_cut_short_has_not_looked_at_is_left_for_others() -> None:
    nodes = [Node("n1", "a", 2, 0), Node("n2", "b", 2, 0)]
    backlog = Backlog()
    backlog.add(Waiting("wide", 0, 1, Demand(2, 0), num_nodes=2))
    backlog.add(Waiting("next", 0, 2, Demand(2, 0)))
    shot = Snapshot(backlog, [], nodes, {}, now_s=1.0, reserve_after_s=600)
    assert plan(shot, max_starts=1).starts == [Start("wide", "n1")]


def test_a_node_where_a_task_was_stuck_is_not_given_to_it_beside_another_one() -> None:
    nodes = [Node(f"n{i}", f"n{i}", 2, 0) for i in range(3)]
    backlog = Backlog()
    stuck = Demand(1, 0, avoid=frozenset({"n0", "n1", "n2"}))
    backlog.add(Waiting("wide", 0, 1, stuck, num_nodes=3))
    shot = Snapshot(backlog, [], nodes, {}, now_s=1.0, reserve_after_s=600)
    assert plan(shot).starts == [Start("wide", "n0")], "it has to be somewhere"


def test_who_waits_is_told_of_those_who_are_given_a_further_node_at_this_moment() -> None:
    nodes = [Node("n1", "a", 2, 0), Node("n2", "b", 4, 0)]
    backlog = Backlog()
    backlog.add(Waiting("wide", 0, 1, Demand(2, 0), num_nodes=2))
    big = Waiting("big", 0, 2, Demand(4, 0))
    backlog.add(big)
    held = [Running("x", "n2", Demand(2, 0))]
    made = plan(Snapshot(backlog, held, nodes, {}, now_s=1.0, reserve_after_s=600))
    assert made.starts == [Start("wide", "n1", (), ("n2",))]
    assert made.reason(big) == "waits for 4 CPUs: b has 0 free, 4 used by wide and x"


def test_further_nodes_count_in_the_share_of_their_owner() -> None:
    nodes = [Node("n1", "a", 2, 0), Node("n2", "b", 4, 0)]
    held = [Running("wide", node.id, Demand(2, 0), "ann") for node in nodes]
    backlog = Backlog()
    for number, owner in enumerate(["ann", "bob"]):
        backlog.add(Waiting(owner, 0, number, Demand(2, 0), owner))
    shot = Snapshot(backlog, held, nodes, {}, now_s=1.0, reserve_after_s=600)
    made = plan(shot)
    assert made.starts == [Start("bob", "n2")]
    waits = backlog.get("ann")
    assert waits is not None
    assert made.reason(waits) == "waits for its turn: 0 before it"
    assert decayed({}, held, nodes, 3600, 3600) == pytest.approx({"ann": 2 / 6})


def test_past_use_is_a_decaying_mean_of_the_dominant_share() -> None:
    running = [Running("x", "n", Demand(2, 1), "ann"), Running("y", "gone", Demand(8, 4), "bob")]
    after = decayed({"cyd": 0.8}, running, BOX, 3600, 3600)
    assert after == pytest.approx({"ann": 0.125, "cyd": 0.4})
    halves = decayed(decayed({"cyd": 0.8}, running, BOX, 1000, 3600), running, BOX, 2600, 3600)
    assert halves == pytest.approx(after)
    assert decayed({"cyd": 1e-15}, [], BOX, 1, 3600) == {}


def test_past_use_adds_up_over_many_short_ticks() -> None:
    running = [Running("x", "n", Demand(0.1, 0), "ann")]
    whole = decayed({}, running, BOX, 1, 86400)
    ticks: dict[str, float] = {}
    for _ in range(1000):
        ticks = decayed(ticks, running, BOX, 0.001, 86400)
    assert ticks == pytest.approx(whole, rel=1e-3)


def test_past_use_is_kept_for_a_thousand_owners_at_most() -> None:
    after = decayed({f"o{i:04}": 0.5 + i / 10_000 for i in range(2000)}, [], BOX, 1, 3600)
    assert set(after) == {f"o{i:04}" for i in range(1000, 2000)}


def test_what_needs_the_labs_own_machine_waits_for_it_while_another_is_free() -> None:
    nodes = [Node("home", "head", 2, 0), Node("away", "other", 8, 0, home=False)]
    backlog = Backlog()
    demand = Demand(1, 0, at_home=True)
    backlog.add(Waiting("prompts", 0, 1, demand))
    backlog.add(Waiting("command", 0, 2, Demand(1, 0)))
    busy = [Running("long", "home", Demand(2, 0))]

    def planned(running: list[Running], among: list[Node]) -> Plan:
        return plan(Snapshot(backlog, running, among, {}, now_s=1.0, reserve_after_s=600))

    assert planned(busy, nodes).starts == [Start("command", "away")]
    waiting = backlog.get("prompts")
    assert waiting is not None
    assert "head has 0 free" in planned(busy, nodes).reason(waiting)
    assert "on the lab's own machine" in planned([], nodes[1:]).reason(waiting)
    assert Start("prompts", "home") in planned([], nodes).starts
