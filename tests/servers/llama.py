"""llama.cpp's HTTP server on a tiny model: `/v1/…`, `/completion`, `/health`, `/props`, `/slots`.

  python -m tests.servers.llama --port 8080
  python -m tests.servers.llama --thinking --slots 4 --ctx 2048 --api-key secret

Without --model it serves a tiny model made on the spot. It prints one line, `READY {"url": …}`, when it is up.
"""

import argparse
import ctypes
from pathlib import Path
from typing import Any

import xllamacpp

from tests.servers import tiny_model
from tests.servers.lifetime import Lifetime, make_parser


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("llama", __doc__)
    parser.add_argument("--model", type=Path, metavar="GGUF", help="a model file")
    parser.add_argument("--seed", type=int, default=1, help="of the tiny model, without --model")
    parser.add_argument("--thinking", action="store_true", help="the tiny model reasons first")
    parser.add_argument("--name", default="tiny", help="what the model calls itself")
    parser.add_argument("--slots", type=int, default=1, help="requests served at once")
    parser.add_argument("--ctx", type=int, default=2048, help="tokens of context per slot")
    parser.add_argument("--api-key", action="append", default=[], help="wanted as bearer token")
    parser.add_argument(
        "--context-shift", action="store_true", help="drop old tokens when the context is full"
    )
    parser.add_argument("--cuda-bytes", type=int, default=0, help="GPU memory to hold besides")
    parser.add_argument("--verbosity", type=int, default=0, help="of llama.cpp's log on stderr")
    return parser


def _params(asked: argparse.Namespace, path: Path) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {asked.name}
    params.hostnames = [asked.host]
    params.port = asked.port
    params.n_parallel = asked.slots
    params.n_ctx = asked.ctx * asked.slots
    params.ctx_shift = asked.context_shift
    params.api_keys = asked.api_key
    params.endpoint_slots = True
    params.endpoint_metrics = True
    params.ui = False
    params.verbosity = asked.verbosity
    # A model this small needs no GPU, no look at the memory, no rehearsal, and no cache beyond its slots.
    params.n_gpu_layers = 0
    params.fit_params = False
    params.warmup = False
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    # A request that waits for a slot holds a thread; some must be left to answer /health.
    params.n_threads_http = 64 + asked.slots
    return params


def _hold_cuda(size_bytes: int) -> None:
    """Take GPU memory, by plain allocations of the driver; it is free again when this process is gone."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, device = ctypes.c_void_p(), ctypes.c_int()
    pointer = ctypes.c_uint64()
    codes = (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device),
        cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size_bytes)),
    )
    if any(codes):
        raise SystemExit(f"{size_bytes} bytes of GPU memory can't be had: {codes}")


def main() -> None:
    """Serve until told to end."""
    asked = _parser().parse_args()
    life = Lifetime(with_stdin=asked.with_stdin)
    made = tiny_model.TinyModel(asked.seed, asked.thinking)
    path = asked.model or tiny_model.write(made, tiny_model.default_directory())
    # It is up when this returns. The name keeps it so, and its own end is not awaited: that would wait
    # for clients in the middle of a reply, as they wait for it.
    if asked.cuda_bytes:
        _hold_cuda(asked.cuda_bytes)
    server = xllamacpp.Server(_params(asked, path))
    life.serve(
        url=server.listening_address,
        model=asked.name,
        path=str(path),
        ctx=asked.ctx,
        slots=asked.slots,
    )
    life.leave()


if __name__ == "__main__":
    main()
