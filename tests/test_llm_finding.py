"""Where a machine's own Ollama is looked for, and whose an endpoint is."""

from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from labd.llm.finding import Machine, find_own, found_on, own_ollama_urls, placed, reach
from labd.llm.model import Endpoint
from labd.llm.wireform import endpoint_to_data
from tests.servers.fixtures import running_ollama

HERE = Machine("id-here", "ada", "192.0.2.1", local=True)
FAR = Machine("id-far", "bob", "192.0.2.2")
ALONE = Machine("id-alone", "cyd", "127.0.0.1", local=True)


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("[::]:8080", "http://127.0.0.1:8080"),
        (":8080", "http://127.0.0.1:8080"),
        ("192.0.2.9", "http://192.0.2.9:11434"),
        (' "192.0.2.9:8080" ', "http://192.0.2.9:8080"),
        ("http://192.0.2.9/", "http://192.0.2.9:80"),
        ("::1", "http://[::1]:11434"),
        ("192.0.2.9:http", "http://127.0.0.1:11434"),
        ("[broken", "http://127.0.0.1:11434"),
    ],
)
def test_it_is_looked_for_where_ollama_would_listen_and_then_where_others_reach_the_machine(
    said: str, first: str
) -> None:
    urls = own_ollama_urls({"OLLAMA_HOST": said}, "192.0.2.1")
    assert urls == [first, f"http://192.0.2.1:{urlsplit(first).port}"]


def test_it_is_found_at_the_machines_address_where_ray_does_not_know_of_ollama_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running_ollama("--model=alpha", "--host=127.0.0.2") as server:
        port = urlsplit(server.url).port
        monkeypatch.setenv("OLLAMA_HOST", f":{port}")
        assert find_own() == ""
        assert find_own("127.0.0.2") == server.url


def test_an_ollama_elsewhere_that_ollama_host_leads_to_is_not_this_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for elsewhere in ("192.0.2.77", "no such..name", "a" * 300):
        monkeypatch.setenv("OLLAMA_HOST", elsewhere)
        assert find_own() == ""


def test_a_loopback_of_the_settings_is_for_work_on_the_labs_own_machine_alone() -> None:
    def only_from(url: str, *machines: Machine) -> str:
        facts = {**endpoint_to_data(Endpoint("x", url)), "node": None}
        [endpoint] = placed([facts], machines)
        return endpoint.only_from

    assert only_from("http://localhost:11434", HERE, FAR) == "id-here"
    assert only_from("http://192.0.2.1:11434", HERE, FAR) == ""
    assert only_from("http://localhost:11434", ALONE) == ""


def test_one_server_is_one_endpoint_also_when_its_machine_came_back_before_it_was_missed() -> None:
    url = "http://192.0.2.2:11434"
    back = Machine("id-back", "bob-1234", FAR.address)
    machines = [HERE, FAR, back]
    first = found_on(FAR, url, url, [], machines)
    assert first == Endpoint("bob", url, node_id="id-far")
    assert found_on(back, url, url, [first], machines) is None
    assert found_on(back, url, url, [], [HERE, back]) is not None


def test_an_endpoint_has_a_name_of_its_own_whatever_others_are_called() -> None:
    url = "http://127.0.0.1:11434"
    taken: list[Endpoint] = []
    for name in ("bob", "bob:11434", "bob:id-far"):
        endpoint = found_on(FAR, url, "", taken, [HERE, FAR])
        assert endpoint == Endpoint(name, url, node_id="id-far", only_from="id-far")
        taken.append(Endpoint(name, "http://192.0.2.9:1"))


def test_what_answers_at_the_machines_address_is_reached_there() -> None:
    with ExitStack() as stack:
        everywhere = stack.enter_context(running_ollama("--model=alpha", "--host=0.0.0.0"))
        alone = stack.enter_context(running_ollama("--model=alpha", "--host=127.0.0.1"))
        other = Machine("id", "two", "127.0.0.2")
        ports = [urlsplit(server.url).port for server in (everywhere, alone)]
        urls = [reach(other, f"http://127.0.0.1:{port}") for port in ports]
        assert urls == [f"http://127.0.0.2:{ports[0]}", ""]
        assert reach(ALONE, alone.url) == alone.url
