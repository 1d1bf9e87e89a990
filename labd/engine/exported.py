"""Which numbers are exported for Prometheus: what each says, and its tags. Each has the tag ``lab`` too. Knows no Ray."""

SECONDS = [0.1, 1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600]

GAUGES = {
    "queue_depth": ("tasks in a state", ("state",)),
    "nodes": ("machines, and of them those that get new tasks", ("state",)),
}
HISTOGRAMS = {
    "task_wait_s": ("from the drop, or the end of the attempt before, to the claim", ()),
    "task_run_s": ("from the claim to the end", ("state",)),
}
COUNTERS = {
    "tasks_ended": ("attempts that ended, and why", ("state", "code")),
    "gpu_s": ("seconds of GPUs that attempts had", ()),
    "tokens": ("tokens of language models that attempts used", ()),
    "sandbox_kills": ("runs that were ended for a limit", ("limit",)),
    "model_loads": ("language models that were loaded", ("endpoint",)),
}
