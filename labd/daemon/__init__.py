"""The daemon: observe, plan, act; over and over, from what is on the disk and what the engine says.

`intake` knows what waits, `attempts` what runs, `endings` how it ends, `recovery` what an earlier daemon left;
`loop` has them take turns. One thread owns every change; signals and watchers only wake it. What is in memory could be lost at any moment: the
directories, the events and the results are the truth.
"""

from labd.daemon.loop import Daemon

__all__ = ["Daemon"]
