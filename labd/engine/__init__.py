"""The engine: running jobs on Ray. The only room that imports ray.

The daemon holds an `Engine` (`client`), which imports no ray and keeps a driver process (`driver`) alive:
Ray ends the process of a driver that lost its cluster. The driver has a Ray of its own (`embedded`), which
ends with it, or uses one that is a service (`service`), where work outlives both. In either a `Dispatcher`
(`dispatcher`) submits, cancels and tells ends; `remote` is what runs in Ray's workers.
"""
