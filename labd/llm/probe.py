"""Servers of language models: whether a configured endpoint answers, and which models it has.

Knows httpx only. Talking to models comes with the researcher that needs it.
"""

from dataclasses import dataclass
from typing import Literal

import httpx

_TIMEOUT = httpx.Timeout(5.0, connect=2.0)
_MAX_REPLY_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class EndpointState:
    """What a look at an endpoint showed. `problem` is empty where all is well."""

    models: tuple[str, ...]
    problem: str = ""
    fix: str = ""


def probe(url: str, api: Literal["ollama", "openai"]) -> EndpointState:
    """Ask an endpoint for its models; never raises for what the server does, and takes at most some seconds."""
    path, key, name = (
        ("/api/tags", "models", "name") if api == "ollama" else ("/v1/models", "data", "id")
    )
    try:
        with (
            httpx.Client(timeout=_TIMEOUT, follow_redirects=False) as client,
            client.stream("GET", url + path) as reply,
        ):
            body = b""
            for chunk in reply.iter_bytes():
                body += chunk
                if len(body) > _MAX_REPLY_BYTES:
                    return EndpointState(
                        (),
                        f"{path} gave more than {_MAX_REPLY_BYTES} bytes",
                        "Check what listens there",
                    )
            if reply.status_code in {401, 403}:
                return EndpointState(
                    (), f"refused with status {reply.status_code}", "Check its access rules"
                )
            found = (
                httpx.Response(reply.status_code, content=body).json()
                if reply.status_code == 200
                else None
            )
    except httpx.ConnectError:
        return EndpointState(
            (), "nothing answers there", f"Start the server, or mend the endpoint's url ({url})"
        )
    except httpx.TimeoutException:
        return EndpointState(
            (), "it did not answer in time", "See whether the server is busy or hung"
        )
    except (httpx.HTTPError, ValueError) as error:
        return EndpointState(
            (), f"{type(error).__name__}: {error}", f"Check that an {api} server listens there"
        )
    models = found.get(key) if isinstance(found, dict) else None
    if not isinstance(models, list):
        return EndpointState(
            (),
            f"{path} is not what an {api} server gives",
            "Set the endpoint's api: ollama or openai",
        )
    return EndpointState(tuple(str(m[name]) for m in models if isinstance(m, dict) and name in m))
