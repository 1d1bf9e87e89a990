"""What a broker does with the endpoints that it can reach itself."""

import threading
from collections.abc import Callable
from typing import Self

from labd.errors import ConfigError
from labd.llm.base import PullProgress
from labd.llm.client import Client, connect
from labd.llm.desk import Change
from labd.llm.errors import EndpointMisconfigured
from labd.llm.model import Endpoint, Look, Timeouts


class DirectHands:
    """Reaches endpoints from this process; see `labd.llm.broker.Hands`. Any thread may call."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self._timeouts = timeouts or Timeouts()
        self._lock = threading.Lock()
        self._clients: dict[str, tuple[Endpoint, Client]] = {}

    def look(self, endpoint: Endpoint) -> Look:
        """Give the endpoint's state."""
        try:
            return self._client(endpoint).look()
        except ConfigError as error:
            return Look("misconfigured", problem=error.what, fix=error.fix)

    def change(self, endpoint: Endpoint, change: Change) -> None:
        """Unload, wait until that is done, and load.

        Raises:
            ModelError: it did not work.

        """
        client = self._client_or_error(endpoint)
        for model in change.unload:
            client.unload(model)
        if change.load is not None:
            client.load(change.load, change.num_ctx)

    def pull(self, endpoint: Endpoint, model: str, progress: Callable[[str], None]) -> None:
        """Have the endpoint download a model.

        Raises:
            ModelError: it did not work.

        """

        def tell(now: PullProgress) -> None:
            share = f" {100 * now.done_bytes // now.total_bytes} %" if now.total_bytes else ""
            size = f" of {now.total_bytes / 2**30:.1f} GiB" if now.total_bytes else ""
            progress(f"{now.status}{share}{size}")

        self._client_or_error(endpoint).pull(model, tell)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for _, client in self._clients.values():
                client.close()
            self._clients.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _client_or_error(self, endpoint: Endpoint) -> Client:
        try:
            return self._client(endpoint)
        except ConfigError as error:
            raise EndpointMisconfigured(error.what, where=error.where, fix=error.fix) from error

    def _client(self, endpoint: Endpoint) -> Client:
        with self._lock:
            known, client = self._clients.get(endpoint.name, (None, None))
            if client is None or known != endpoint:
                if client is not None:
                    client.close()
                client = connect(endpoint, self._timeouts)
                self._clients[endpoint.name] = (endpoint, client)
            return client
