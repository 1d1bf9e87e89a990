"""The API key of an endpoint."""

from labd.apikey import read_api_key
from labd.llm.model import Endpoint


def read_key(endpoint: Endpoint) -> str:
    """Give the endpoint's API key from its environment variable or file; empty where it names neither.

    Raises:
        ConfigError: it is not there, others may read it, or it is no key.

    """
    where = f"endpoint {endpoint.name}"
    return read_api_key(endpoint.key_env, endpoint.key_file, endpoint.key_credential, where=where)
