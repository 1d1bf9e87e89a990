"""A driver that works on an endpoint by small tasks on the cluster's other node: what it saw and did, as JSON.

    python -m tests.nodehands RAY_ADDRESS URL KEY_VARIABLE

KEY_VARIABLE is set in the other node's environment alone, so that nothing done from here could work.
"""

import json
import sys

import ray

from labd.engine.models import NodeHands, machines_of
from labd.llm.desk import Change
from labd.llm.errors import ModelError
from labd.llm.hands import DirectHands
from labd.llm.model import Endpoint, Look


def main() -> None:
    """Look, load, look, unload, look; then load what is not there."""
    address, url, variable = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    here = str(ray.get_runtime_context().get_node_id())
    far = next(machine for machine in machines_of(here) if not machine.local)
    endpoint = Endpoint("far", url, node_id=far.id, only_from=far.id, key_env=variable)
    hands = NodeHands(DirectHands(), here)

    def loaded() -> list[str]:
        return [model.name for model in hands.look(endpoint).loaded or ()]

    direct: Look = DirectHands().look(endpoint)
    told: dict[str, object] = {"direct": direct.health, "before": loaded()}
    hands.change(endpoint, Change("far", (), "alpha", 2048))
    told["after"] = loaded()
    hands.change(endpoint, Change("far", ("alpha:latest",)))
    told["at_last"] = loaded()
    try:
        hands.change(endpoint, Change("far", (), "nobody", 2048))
    except ModelError as error:
        told["error"] = type(error).__name__
    ray.shutdown()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
