"""What each fault costs, measured in a box: `python -m tests.system.faults` prints the table of docs/reliability.md.

For each: a command that beats is at work; then the fault; then a second command is dropped at once. Told is what became of the
first, and after how many seconds the second was done. Needs root.
"""

import sys
import time
from collections.abc import Callable

from tests.processes import wait_until
from tests.system.installed import STEADY, Installed, why_not_installed

WATCHDOG_S = 10


def kill(pattern: str) -> Callable[[Installed], object]:
    """Give what sends SIGKILL to all processes of the box whose command line has the pattern."""
    return lambda lab: lab.box.sh(f"kill -9 $(pgrep -f '{pattern}')")


def to_daemon(signal: str) -> Callable[[Installed], object]:
    """Give what sends a signal to the daemon."""
    return lambda lab: lab.box.sh(f"kill -{signal} {lab.box.main_pid('labd')}")


def restart(unit: str) -> Callable[[Installed], object]:
    """Give what restarts a unit."""
    return lambda lab: lab.box.run("systemctl", "restart", unit)


def cut_power(lab: Installed) -> None:
    """Cut the power, and give it back."""
    lab.box.run("sync")
    lab.box.cut()
    lab.box.boot()


FAULTS: dict[str, Callable[[Installed], object]] = {
    "`systemctl restart labd`": restart("labd"),
    "SIGKILL of the daemon": to_daemon("KILL"),
    f"the daemon hangs (WatchdogSec={WATCHDOG_S})": to_daemon("STOP"),
    "SIGKILL of the driver": kill("labd.engin[e] "),
    "SIGKILL of the worker": kill("^ray::labd:work-[0-9]*[#]"),
    "SIGKILL of the dispatcher": kill("^ray::Dispatche[r]"),
    "SIGKILL of the raylet": kill("raylet/rayle[t]"),
    "SIGKILL of Ray's head (GCS)": kill("gcs/gcs_serve[r]"),
    "`systemctl restart labd-ray`": restart("labd-ray"),
    "power cut": cut_power,
}


def tell(lab: Installed, number: int, what: str, fault: Callable[[Installed], object]) -> str:
    """Do one fault; give its row."""
    work, after = f"work-{number}", f"after-{number}"
    lab.start()
    lab.drop(work, STEADY)
    lab.wait_beats(work)
    seen = lab.story(work).count("claimed")
    began_s = time.monotonic()
    fault(lab)
    lab.drop(after, "true")
    lab.wait(after, "done", 240)
    took_s = time.monotonic() - began_s
    # It goes on, or it has begun again, or it will.
    beats = lab.beats(work)
    wait_until(lambda: lab.state(work) == "running" and lab.beats(work) > beats, 120, "its work")
    lab.let_end(work)
    lab.wait(work, "done", 120)
    story = lab.story(work)
    assert story.count("done") == 1, story
    attempts = story.count("claimed") - seen
    became = "went on" if not attempts else f"began again, {attempts} more attempt(s)"
    return f"| {what} | {became}; done once | {took_s:.0f} s |"


def main() -> None:
    """Print the table."""
    if reason := why_not_installed():
        sys.exit(reason)
    lab = Installed("labdfaults", disk_mib=384, watchdog_s=WATCHDOG_S)
    try:
        lab.box.run("systemctl", "enable", "-q", "labd.target")
        lab.start()
        print(
            "| fault | what ran | a task dropped then was done after |\n|---|---|---|", flush=True
        )
        for number, (what, fault) in enumerate(FAULTS.items()):
            print(tell(lab, number, what, fault), flush=True)
    finally:
        lab.box.remove()


if __name__ == "__main__":
    main()
