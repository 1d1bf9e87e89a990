"""Results of a worker on another node come home: a `Store` on the head, a `Mirror` on the node.

Between them is a transport that is nothing but ``call(method, /, **plain data) -> plain data``, bound to
`Store.answer`. Knows files; nothing of Ray, the spool or research.
"""

from labd.shipping.link import Call
from labd.shipping.mirror import Mirror, job_here
from labd.shipping.model import (
    Fenced,
    LinkLost,
    MirrorLimits,
    ShippingError,
    StoreLimits,
)
from labd.shipping.store import Store
from labd.shipping.tally import SHIPPED

__all__ = [
    "SHIPPED",
    "Call",
    "Fenced",
    "LinkLost",
    "Mirror",
    "MirrorLimits",
    "ShippingError",
    "Store",
    "StoreLimits",
    "job_here",
]
