"""What a task asks a node for, in the scheduler's words."""

from labd.scheduler import Demand
from labd.task import TaskSpec


def demand_of(spec: TaskSpec) -> Demand:
    """Give a task's demand. Prompts are read and answered on the lab's own machine, wherever the models are."""
    return Demand(spec.num_cpus, spec.num_gpus, at_home=spec.kind == "prompts")
