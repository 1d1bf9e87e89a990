"""What `labd doctor` says of language models, with real servers that have something wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from labd import doctor
from labd.doctor import Finding, Level
from labd.settings import Home, Settings
from labd.spool import Spool
from tests.servers.fixtures import running_llama, running_ollama


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # What listens on the usual port of the machine that runs the tests is none of theirs.
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    (tmp_path / "data").mkdir()
    Spool(tmp_path / "spool").prepare()
    return tmp_path


def findings(root: Path, **settings: Any) -> dict[str, Finding]:
    home = Home(root, Settings.model_validate(settings))
    return {finding.name: finding for finding in doctor._models(home)}


def an(name: str, url: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "url": url, **more}


def test_without_any_server_it_is_only_noted(place: Path) -> None:
    found = findings(place)
    assert [f.level for f in found.values()] == [Level.NOTE]


def test_a_server_that_is_down_is_told_with_what_to_do(place: Path) -> None:
    found = findings(place, endpoints=[an("ada", "http://127.0.0.1:1")])
    assert found["endpoint ada"].level is Level.FAILING
    assert "127.0.0.1:1" in found["endpoint ada"].found
    assert found["endpoint ada"].fix


def test_a_model_that_the_settings_or_a_task_want_and_nobody_has_is_told(place: Path) -> None:
    text = "kind: prompts\ninput: questions.jsonl\nmodel: beta:7b\n"
    (place / "spool" / "pending" / "ask.yaml").write_text(text)
    with running_ollama("--model=alpha") as node:
        found = findings(place, endpoints=[an("ada", node.url)], llm={"model": "gamma"})
        good = findings(place, endpoints=[an("ada", node.url)], llm={"model": "alpha"})
        pulls = findings(place, endpoints=[an("ada", node.url, pull=True)])
    assert found["model gamma"].level is Level.FAILING
    assert found["model gamma"].fix == "ollama pull gamma"
    assert "the settings" in found["model gamma"].found
    assert found["model beta:7b"].fix == "ollama pull beta:7b"
    assert "ask wants it" in found["model beta:7b"].found
    assert found["endpoint ada"].level is Level.OK
    assert "model alpha" not in good
    assert pulls["model beta:7b"].level is Level.NOTE


def test_a_model_that_runs_elsewhere_is_told_unless_allowed(place: Path) -> None:
    with running_ollama("--model=alpha") as node:
        ends = [an("ada", node.url)]
        found = findings(place, endpoints=ends, llm={"model": "gpt-oss:120b-cloud"})
    assert found["model gpt-oss:120b-cloud"].level is Level.FAILING
    assert "somebody else's machines" in found["model gpt-oss:120b-cloud"].found


def test_a_context_too_small_for_a_template_is_told(place: Path) -> None:
    with running_ollama("--model=alpha,context=4096") as node:
        ends = [an("ada", node.url)]
        fine = findings(place, endpoints=ends, llm={"model": "alpha", "num_ctx": 4096})
        long = place / "config" / "templates" / "long"
        long.mkdir(parents=True)
        (long / "template.yaml").write_text("name: long\n")
        (long / "experiment.py").write_text("x = 1  # a line of a long experiment\n" * 500)
        by_setting = findings(place, endpoints=ends, llm={"model": "alpha", "num_ctx": 4096})
        by_model = findings(place, endpoints=ends, llm={"model": "alpha", "num_ctx": 32768})
        enough = findings(place, endpoints=ends, llm={"num_ctx": 32768})
    assert "context: long" not in fine
    assert "`llm: {num_ctx: …}` says 4096" in by_setting["context: long"].found
    assert "alpha knows 4096" in by_model["context: long"].found
    assert "context: long" not in enough


def test_a_wrong_key_is_told_and_never_shown(place: Path) -> None:
    key = place / "key"
    key.touch(mode=0o600)
    key.write_text("a-wrong-key")
    with running_llama("--api-key=the-right-key") as server:
        end = an("cpp", server.url, api="openai", key_file="key")
        wrong = findings(place, endpoints=[end])
        key.write_text("the-right-key")
        right = findings(place, endpoints=[end])
        key.chmod(0o644)
        open_to_all = findings(place, endpoints=[end])
    assert wrong["endpoint cpp"].level is Level.FAILING
    assert "key" in wrong["endpoint cpp"].found + wrong["endpoint cpp"].fix
    assert right["endpoint cpp"].level is Level.OK
    assert open_to_all["endpoint cpp"].level is Level.FAILING
    assert open_to_all["endpoint cpp"].fix == f"chmod 600 {key}"
    said = json.dumps([[f.found, f.fix] for f in (*wrong.values(), *open_to_all.values())])
    assert "a-wrong-key" not in said
    assert "the-right-key" not in said


def test_two_nodes_with_different_weights_under_one_name_are_told(place: Path) -> None:
    with (
        running_ollama("--model=alpha,seed=1") as one,
        running_ollama("--model=alpha,seed=2") as two,
        running_ollama("--model=alpha,seed=1") as three,
    ):
        ends = [an("ada", one.url), an("bob", two.url), an("cyd", three.url)]
        found = findings(place, endpoints=ends)
        same = findings(place, endpoints=[ends[0], ends[2]])
    told = found["model alpha:latest"]
    assert told.level is Level.WARNING
    assert "on ada, cyd" in told.found
    assert "on bob" in told.found
    assert "ollama pull alpha:latest" in told.fix
    assert "model alpha:latest" not in same
