"""How much of two slots' time commands of a fifth of a second fill: the ideal time over the time taken."""

from rich.console import Console
from rich.table import Table

from tests.bench.baselines import measure
from tests.bench.lab import SLOTS, bench_lab, command, median, settle

_SLEEP_S = 0.2


def main(*, small: bool) -> bool:
    """Measure and print; say whether all work is there."""
    count, rounds = (20, 1) if small else (60, 3)
    ideal_s = count * _SLEEP_S / SLOTS
    sleeps = {f"s{number}": command(["sleep", str(_SLEEP_S)]) for number in range(count)}
    labd_s, threads_s, ray_s = [], [], []
    for _ in range(rounds):
        threads_s.append(measure("threads", count, ["sleep", str(_SLEEP_S)]).wall_s)
        ray_s.append(measure("ray", count, ["sleep", str(_SLEEP_S)]).wall_s)
        with bench_lab() as lab:
            daemon = lab.start()
            lab.mv("warm", command(["true"]))
            lab.wait_done(["warm"])
            settle(daemon)
            lab.mv_all(sleeps)
            lab.wait_done(sleeps)
            labd_s.append(lab.span_s(sleeps))
    title = (
        f"{count} times sleep {_SLEEP_S}, {SLOTS} slots, median of {rounds}, ideal {ideal_s:.1f} s"
    )
    table = Table("who", "wall", "packed", title=title)
    for who, walls_s in (("threads", threads_s), ("plain Ray", ray_s), ("labd", labd_s)):
        wall_s = median(walls_s)
        table.add_row(who, f"{wall_s:.2f} s", f"{100 * ideal_s / wall_s:.1f} %")
    Console().print(table)
    return True
