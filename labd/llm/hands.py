"""What a broker does with the endpoints that it can reach itself."""

import threading
from collections.abc import Callable

from labd.llm.client import Client, connect
from labd.llm.desk import Change
from labd.llm.model import Endpoint, Look, Timeouts


class DirectHands:
    """Reaches endpoints from this process; see `labd.llm.broker.Hands`. Any thread may call."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self._timeouts = timeouts or Timeouts()
        self._lock = threading.Lock()
        self._clients: dict[Endpoint, Client] = {}

    def look(self, endpoint: Endpoint) -> Look:
        """Give the endpoint's state."""
        return self._client(endpoint).look()

    def change(self, endpoint: Endpoint, change: Change) -> None:
        """Unload, wait until that is done, and load.

        Raises:
            ModelError: it did not work.

        """
        client = self._client(endpoint)
        for model in change.unload:
            client.unload(model)
        if change.load is not None:
            client.load(change.load, change.num_ctx)

    def pull(self, endpoint: Endpoint, model: str, progress: Callable[[str], None]) -> None:
        """Have the endpoint download a model.

        Raises:
            ModelError: it did not work.

        """
        self._client(endpoint).pull(model, progress)

    def _client(self, endpoint: Endpoint) -> Client:
        with self._lock:
            if endpoint not in self._clients:
                self._clients[endpoint] = connect(endpoint, self._timeouts)
            return self._clients[endpoint]
