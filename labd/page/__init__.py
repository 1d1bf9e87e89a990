"""The status page: what `labd list` and `labd show` tell, in a browser, refreshing itself; and the same renames.

A process of its own over the lab's API; it may die without hurting anything, and works with the daemon down.
Everything shown is untrusted text: it is escaped in `html` and never given to a template. `guard` decides
who may ask for what.
"""

from labd.page.server import serve

__all__ = ["serve"]
