"""How what a broker and its holders say to each other travels: plain data. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from labd.llm import errors
from labd.llm.errors import EndpointFailed, ModelError
from labd.llm.model import Endpoint
from labd.llm.router import Grant

Call = Callable[..., dict[str, Any]]
"""``call(method, /, **plain data) -> plain data``, bound to `Broker.answer`; raises `OSError` where that is out of reach."""

_ERRORS = {
    found.code: found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, ModelError)
}


def endpoint_to_data(endpoint: Endpoint) -> dict[str, Any]:
    """Give an endpoint as plain data."""
    return asdict(endpoint)


def endpoint_from_data(data: Mapping[str, Any]) -> Endpoint:
    """Read what `endpoint_to_data` gave, also after it went through JSON."""
    gpus = data["gpus"]
    return Endpoint(**{**data, "gpus": None if gpus is None else tuple(gpus)})


def error_from_data(data: Mapping[str, Any]) -> ModelError:
    """Make the error of which `LabdError.as_data` told."""
    kind = _ERRORS.get(data["code"], EndpointFailed)
    return kind(data["what"], where=data["where"], fix=data["fix"])


def grant_to_data(grant: Grant) -> dict[str, Any]:
    """Give a grant as plain data, without its holder."""
    return {
        "ticket": grant.ticket,
        "lease": grant.lease,
        "endpoint": endpoint_to_data(grant.endpoint),
        "model": grant.model,
        "num_ctx": grant.num_ctx,
        "digest": grant.digest,
    }
