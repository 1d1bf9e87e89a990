"""What the engine is told: how to get Ray and what workers need, and the job of one attempt. Pure."""

import hashlib
import os
from typing import Any

from labd.daemon.attempts import Active
from labd.engine.types import Job
from labd.settings import Home
from labd.task import TaskFile

_LOOK_EVERY_S = 10.0
_LEAST_LOOK_EVERY_S = 0.5
_LOOKS = 6


def engine_options(home: Home) -> dict[str, Any]:
    """Give the options of `labd.engine.client.Engine`."""
    settings = home.settings
    return {
        "address": settings.ray.address,
        "num_cpus": settings.ray.num_cpus,
        "num_gpus": settings.ray.num_gpus,
        "dashboard": settings.ray.dashboard,
        "token_path": str(home.run_dir / "ray.token"),
        "lab": hashlib.sha256(os.fsencode(home.spool.resolve())).hexdigest()[:12],
        "lock_path": str(home.run_dir / "engine.lock"),
        "worker": {
            "results": str(home.results),
            "sandbox": settings.sandbox.model_dump(mode="json"),
            "min_free_bytes": settings.min_free_bytes,
        },
        "models": {
            "endpoints": [endpoint.facts(home.root) for endpoint in settings.endpoints],
            "discover": settings.llm.discover,
            "rules": {
                "turn_s": settings.llm.turn,
                "patience_s": settings.llm.patience,
                "allow_remote": settings.llm.allow_remote,
            },
            "status_path": str(home.models_status),
        },
        "look_every_s": look_every_s(settings.stuck_after),
    }


def look_every_s(stuck_after_s: float) -> float:
    """Give how often machines, and the attempts there, are looked at: some times within the limit of stuck work."""
    if not stuck_after_s:
        return _LOOK_EVERY_S
    return min(_LOOK_EVERY_S, max(_LEAST_LOOK_EVERY_S, stuck_after_s / _LOOKS))


def job_for(home: Home, active: Active, task: TaskFile) -> Job:
    """Give the engine's order for an attempt."""
    settings = home.settings
    return Job(
        task_id=active.task_id,
        attempt=active.attempt,
        node_id=active.node_id,
        num_cpus=active.demand.num_cpus,
        num_gpus=active.demand.num_gpus,
        timeout_s=active.timeout_s,
        task_text=task.text,
        task_sha256=task.sha256,
        file_name=active.name,
        results_dir=str(home.results / active.task_id),
        template_roots=[str(home.templates)],
        min_free_bytes=settings.min_free_bytes,
        sandbox=settings.sandbox.model_dump(mode="json"),
        allow_network=settings.sandbox.allow_network,
        wants_models=task.spec.asks_models,
        default_model=settings.llm.model,
        default_num_ctx=settings.llm.num_ctx,
        literature=settings.literature.facts(home.root) if task.spec.by_llm else {},
        input_roots=[str(path) for path in home.inputs],
        forbidden_roots=[str(path) for path in home.forbidden],
        also_nodes=list(active.also),
    )
