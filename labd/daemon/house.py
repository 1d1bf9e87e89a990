"""What the parts of one daemon share: where things lie, who is told, and who does the work."""

from dataclasses import dataclass

from labd.archive import Archive
from labd.daemon.announcing import Announcing
from labd.engine.client import Engine
from labd.log import Logger
from labd.settings import Home
from labd.spool import Spool


@dataclass(frozen=True, slots=True)
class House:
    """The lab that a daemon serves, with its tools."""

    home: Home
    log: Logger
    spool: Spool
    archive: Archive
    engine: Engine
    announcing: Announcing
