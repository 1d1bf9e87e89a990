"""Language models: prompts on 1, 2 and 4 endpoints, the client's CPU, model loads saved, an endpoint killed in mid-batch.

The servers are real llama.cpp on a tiny model behind an Ollama-like node, slowed to a pace at which the machine is not the
limit: what is measured is whether labd keeps the servers busy, not how fast they are.
"""

import itertools
import json
import math
import queue
import random
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labd.command.places import Fence
from labd.llm.broker import Broker
from labd.llm.client import connect
from labd.llm.desk import Rules
from labd.llm.hands import DirectHands
from labd.llm.model import Endpoint, Message, Options
from labd.llm.pool import Pool
from labd.log import stderr_logger
from labd.prompts.run import Patience, Report, run_prompts
from labd.task import parse_task
from tests.processes import wait_until
from tests.servers.fixtures import RunningServer, running_ollama

SLOTS = 2
SECONDS_PER_TOKEN = 0.02
NUM_PREDICT = 32
LOAD_S = 1.0
TURN_S = 10.0
_TASK = f"""kind: prompts
model: alpha
input: {{path}}
options: {{{{num_ctx: 2048, num_predict: {NUM_PREDICT}, allow_cut: true, seed: 1}}}}
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """A run of prompts: its report, and the places of its records."""

    report: Report
    wall_s: float
    results: Path

    def lines(self) -> list[dict[str, Any]]:
        """Give the output's lines."""
        lines = (self.results / "output.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def ids(self) -> list[str]:
        """Give the ids of the output's lines, in order."""
        return [line["id"] for line in self.lines()]

    def output_tokens(self) -> int:
        """Count the tokens of all replies."""
        return sum(line["provenance"]["output_tokens"] for line in self.lines())


def main(*, small: bool = False) -> bool:
    """Measure, and print tables; give whether nothing was lost or answered twice."""
    print("\n## Language models: `models`\n")
    good = _throughput(20 if small else 100)
    _client_cpu(20 if small else 200)
    good &= _loads(40 if small else 200)
    return _killed(60 if small else 200) and good


# --- prompts on several endpoints


def _throughput(for_each: int) -> bool:
    print(
        f"{for_each} prompts for each endpoint of {SLOTS} slots; a server takes {1000 * SECONDS_PER_TOKEN:g} ms a token.\n"
        "The bare client: `urllib` threads, one for each slot, that each ask one server again and again.\n"
    )
    print("| endpoints | bare clients | labd's `prompts` | of the bare clients | lost or twice |")
    print("|---|---|---|---|---|")
    good = True
    for number in (1, 2, 4):
        with _nodes(number) as nodes:
            bare = _bare(nodes, for_each)
            batch = _batch(nodes, for_each * number)
        wrong = _wrong(batch, for_each * number)
        good &= wrong == 0
        mine = batch.output_tokens() / batch.wall_s
        print(
            f"| {number} | {bare:.1f} tokens/s | {mine:.1f} tokens/s | {100 * mine / bare:.1f} % | {wrong} |"
        )
    print()
    return good


@contextmanager
def _nodes(number: int, *more: str) -> Iterator[list[RunningServer]]:
    arguments = (
        "--model=alpha",
        f"--num-parallel={SLOTS}",
        f"--seconds-per-token={SECONDS_PER_TOKEN}",
        *more,
    )
    with ExitStack() as stack:
        nodes = [stack.enter_context(running_ollama(*arguments)) for _ in range(number)]
        for node in nodes:
            _post(node, {"model": "alpha", "messages": [], "options": {"num_ctx": 2048}})
        yield nodes


def _post(node: RunningServer, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(f"{node.url}/api/chat", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=120) as reply:
        raw: bytes = reply.read()
    return raw


def _bare(nodes: Sequence[RunningServer], for_each: int) -> float:
    """Ask each server as fast as it answers, without any care; give the tokens per second of all together."""
    options = {"num_ctx": 2048, "num_predict": NUM_PREDICT, "seed": 1}

    def ask(node: RunningServer, number: int) -> tuple[int, float]:
        messages = [{"role": "user", "content": f"question {number}"}]
        body = {"model": "alpha", "messages": messages, "options": options, "think": False}
        last = _post(node, body).strip().splitlines()[-1]
        return int(json.loads(last)["eval_count"]), time.monotonic()

    begun_s, rate = time.monotonic(), 0.0
    with ExitStack() as stack:
        asked = []
        for i, node in enumerate(nodes):
            threads = stack.enter_context(ThreadPoolExecutor(SLOTS))
            numbers = range(i * for_each, (i + 1) * for_each)
            asked.append([threads.submit(ask, node, number) for number in numbers])
        for futures in asked:
            tokens, ended_s = zip(*(future.result() for future in futures), strict=True)
            rate += sum(tokens) / (max(ended_s) - begun_s)
    return rate


@contextmanager
def _pool(nodes: Sequence[RunningServer], **over: Any) -> Iterator[Pool]:
    endpoints = [
        Endpoint(f"e{i}", node.url, node_id="here", **{"slots": SLOTS, **over})
        for i, node in enumerate(nodes)
    ]
    broker = Broker(Rules(turn_s=TURN_S), lambda: endpoints, DirectHands())
    try:
        wait_until(lambda: all(e["health"] == "up" for e in _told(broker)) and _told(broker))
        with Pool(broker.answer, holder="bench#1", node_id="here") as pool:
            yield pool
    finally:
        broker.close()


def _told(broker: Broker) -> list[dict[str, Any]]:
    endpoints: list[dict[str, Any]] = broker.answer("report")["endpoints"]
    return endpoints


def _batch(
    nodes: Sequence[RunningServer],
    count: int,
    meanwhile: Callable[[Path], None] = lambda _: None,
) -> Batch:
    root = Path(tempfile.mkdtemp(prefix="labd-bench-"))
    results, data = root / "results" / "batch", root / "data"
    results.mkdir(parents=True)
    data.mkdir()
    prompts = data / "prompts.jsonl"
    prompts.write_text("".join(f"{json.dumps(f'question {i}')}\n" for i in range(count)))
    task = parse_task(_TASK.format(path=prompts).encode(), "batch.yaml")
    with _pool(nodes) as pool:
        threading.Thread(target=meanwhile, args=(results,), daemon=True).start()
        begun_s = time.monotonic()
        report = run_prompts(
            task,
            pool,
            where="batch.yaml",
            results=results,
            fence=Fence((data,), (), results.parent),
            defaults=Options(""),
            patience=Patience.within(begun_s, 600),
            progress=lambda *_: None,
            log=stderr_logger(level="error"),
        )
        wall_s = time.monotonic() - begun_s
    return Batch(report, wall_s, results)


def _wrong(batch: Batch, count: int) -> int:
    """Count the prompts that were lost or are in the output twice."""
    ids = batch.ids()
    return abs(count - len(set(ids))) + len(ids) - len(set(ids))


# --- what a request costs


def _client_cpu(count: int) -> None:
    with running_ollama("--model=alpha") as node:
        endpoint = Endpoint("one", node.url)
        options = Options("alpha", num_ctx=2048, num_predict=50, allow_cut=True, seed=1)
        hello = [Message("user", "hello")]
        client = connect(endpoint)
        client.chat(hello, options)
        tokens, cpu_s = [], []
        for _ in range(count):
            before_s = time.thread_time()
            tokens.append(client.chat(hello, options).output_tokens)
            cpu_s.append(time.thread_time() - before_s)
        client.close()
        with _pool([node]) as pool:
            pool.chat(hello, options)
            before_s = time.process_time()
            for _ in range(count):
                pool.chat(hello, options)
            whole_s = (time.process_time() - before_s) / count
    print(
        f"One request of {statistics.median(tokens):.0f} tokens, one after the other, {count} times:\n"
    )
    print("| CPU a request | |")
    print("|---|---|")
    print(f"| the client alone, its thread, median | {1000 * statistics.median(cpu_s):.2f} ms |")
    print(
        f"| with pool and broker, all threads of the process, mean | {1000 * whole_s:.2f} ms |\n"
    )


# --- loads


def _loads(count: int) -> bool:
    models = ("alpha", "beta", "gamma")
    random_ = random.Random(1)
    asked = [random_.choice(models) for _ in range(count)]
    arguments = (
        *(f"--model={model}" for model in models),
        *("--max-loaded=1", "--num-parallel=1", f"--load-seconds={LOAD_S}"),
    )
    print(
        f"{count} requests for {len(models)} models in random order, all at once, on two nodes that hold one model each; a load"
        f" takes {LOAD_S:g} s more than llama.cpp's own start, a turn is {TURN_S:g} s.\n"
    )
    print("| routing | model loads | wall | longest wait for a slot | bound |")
    print("|---|---|---|---|---|")
    with ExitStack() as stack:
        nodes = [stack.enter_context(running_ollama(*arguments)) for _ in range(2)]
        wall_s, waits_s, _ = _first_come(nodes, asked)
        plain = sum(node.total("loads") for node in nodes)
        print(f"| first come, first served | {plain} | {wall_s:.0f} s | {max(waits_s):.1f} s | |")
    with ExitStack() as stack:
        nodes = [stack.enter_context(running_ollama(*arguments)) for _ in range(2)]
        wall_s, waits_s, took_s = _routed(nodes, asked)
        loads = sum(node.total("loads") for node in nodes)
        # Each round, n - 1 turns of others with the longest request and a load, and a turn of its own, until all
        # requests for the same model that came before it have had their slot.
        other_s = (len(models) - 1) * (TURN_S + max(took_s) + 2 * LOAD_S) + 2 * LOAD_S
        own_s = max(sum(t for m, t in zip(asked, took_s, strict=True) if m == x) for x in models)
        bound_s = own_s + math.ceil(own_s / TURN_S) * other_s
        print(f"| labd | {loads} | {wall_s:.0f} s | {max(waits_s):.1f} s | {bound_s:.1f} s |")
    print(f"\n{plain / loads:.1f} times fewer loads; 5 was the goal.\n")
    return len(waits_s) == count


def _first_come(
    nodes: Sequence[RunningServer], asked: Sequence[str]
) -> tuple[float, list[float], list[float]]:
    """Give each request, in order, to the next server that is free."""
    free: queue.SimpleQueue[RunningServer] = queue.SimpleQueue()
    for node in nodes:
        free.put(node)

    def ask(model: str) -> tuple[float, float]:
        begun_s = time.monotonic()
        node = free.get()
        got_s = time.monotonic()
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        _post(node, {**body, "options": {"num_ctx": 2048, "num_predict": NUM_PREDICT}})
        free.put(node)
        return got_s - begun_s, time.monotonic() - got_s

    return _timed(ask, asked)


def _routed(
    nodes: Sequence[RunningServer], asked: Sequence[str]
) -> tuple[float, list[float], list[float]]:
    with _pool(nodes, slots=1) as pool:

        def ask(model: str) -> tuple[float, float]:
            begun_s, started_s = time.monotonic(), [0.0]
            options = Options(model, num_ctx=2048, num_predict=NUM_PREDICT, allow_cut=True)
            pool.chat(
                [Message("user", "hello")],
                options,
                on_start=lambda: started_s.append(time.monotonic()),
            )
            return started_s[-1] - begun_s, time.monotonic() - started_s[-1]

        return _timed(ask, asked)


def _timed(
    ask: Callable[[str], tuple[float, float]], asked: Sequence[str]
) -> tuple[float, list[float], list[float]]:
    """Ask all at once; give the wall seconds, and of each request its wait and its time."""
    begun_s = time.monotonic()
    with ThreadPoolExecutor(len(asked)) as threads:
        found = list(threads.map(ask, asked))
    waits_s, took_s = map(list, zip(*found, strict=True))
    return time.monotonic() - begun_s, waits_s, took_s


# --- a kill


def _killed(count: int) -> bool:
    with _nodes(2) as nodes:

        def kill(results: Path) -> None:
            replies = results / "replies.jsonl"
            wait_until(lambda: replies.exists() and replies.read_bytes().count(b"\n") > count // 4)
            nodes[0].kill()

        batch = _batch(nodes, count, kill)
    wrong = _wrong(batch, count)
    errors = (batch.results / "errors.jsonl").read_bytes().count(b"\n")
    ordered = batch.ids() == [str(n) for n in itertools.chain(range(1, count + 1))]
    print(f"{count} prompts on two endpoints, one of which is killed after a quarter of them:\n")
    print("| answered | lost or twice | errors | in order |")
    print("|---|---|---|---|")
    print(f"| {len(batch.ids())} | {wrong} | {errors} | {'yes' if ordered else 'no'} |\n")
    return wrong == 0 and ordered
