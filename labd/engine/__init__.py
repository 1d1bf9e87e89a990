"""The engine: running jobs on Ray. The only room that imports ray.

Ray's driver lives in a process of its own (`labd.engine.driver`), because Ray ends the process of a
driver that lost its cluster. The daemon holds an `Engine` (`labd.engine.client`), which never imports ray.
"""
