"""`python -m tests.bench [--small] [NAME…]`: measure the queue, and print tables; all of them without a name.

Asserts nothing about time. Exits with 1 if work was lost. Wants a machine that is otherwise idle.
"""

import argparse
import importlib
import sys

NAMES = (
    "latency",
    "throughput",
    "packing",
    "kills",
    "cost",
    "scale",
    "demo",
    "models",
    "research",
    "page",
    "report",
)


def main() -> int:
    """Run the named benches in turn; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}, soak or profile"
    )
    parser.add_argument("--small", action="store_true", help="a short run, to see that it works")
    asked = parser.parse_args()
    lost = []
    for name in asked.names or NAMES:
        if name not in (*NAMES, "profile", "soak"):
            parser.error(f"no bench {name!r}")
        bench = importlib.import_module(f"tests.bench.{name}")
        if not bench.main(small=asked.small):
            lost.append(name)
    if lost:
        print(f"work was lost: {', '.join(lost)}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
