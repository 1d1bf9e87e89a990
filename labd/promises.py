"""What a sandbox promises, by name: the names that gaps have and that the settings may accept. Imports nothing."""

from collections.abc import Mapping
from types import MappingProxyType

PROMISES: Mapping[str, str] = MappingProxyType(
    {
        "bwrap": "bubblewrap is there, of a version that can do what is needed",
        "interpreter": "labd's Python can be shown to a run without showing too much",
        "seccomp": "there is a filter of system calls for this machine",
        "root": "where labd is root, it can prepare a run for another user",
        "uid": "where labd is root, it can become another user",
        "userns": "namespaces can be made",
        "proc": "a run gets a /proc of its own",
        "start": "a sandbox starts",
        "probe": "a sandbox runs what it is told",
        "network": "a run has no network but a loopback of its own",
        "capabilities": "a run has no capabilities",
        "no_new_privs": "a run can't gain privileges",
        "filter": "the filter of system calls is in force",
        "files": "a run sees and writes its own places only",
        "nested": "a run can't make namespaces of its own",
        "environment": "a run has a clean environment",
        "limits": "the kernel takes limits for what runs",
        "processes": "the number of a run's processes is limited",
        "file_size": "the size of each file is limited",
        "tmp_size": "the size of /tmp and HOME is limited",
        "shm_size": "the size of /dev/shm is limited",
        "process_memory": "the memory of each process is limited",
        "cgroup": "the kernel limits the memory of all of a run's processes together",
        "cpus": "the number of CPUs that a run uses at once is limited",
        "time": "a run ends at its timeout, with all that it started",
        "cpu_time": "a run ends when it has used its CPU time",
        "output": "a run that prints without end is ended",
        "disk": "a run that writes more than it may is ended",
        "file_count": "a run that makes more files than it may is ended",
    }
)
