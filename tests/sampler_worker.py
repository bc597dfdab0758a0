"""A sampling rank for the tests: `python tests/sampler_worker.py CONFIG REPLICA PORT`. A request for `FATAL_TOKENS`
tokens makes its engine raise; one for `STUCK_TOKENS` makes it take steps that sample nothing, until one for
`FREE_TOKENS`. With `FAILS_AT_START` in the environment it does not start."""

from __future__ import annotations

import os
import pathlib
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from rlvr import environment

environment.prepare(enforce_eager=True)

from rlvr import buckets, distributed, serve  # noqa: E402
from rlvr.colocated import Request  # noqa: E402
from rlvr.config import Config  # noqa: E402

FATAL_TOKENS = 11
STUCK_TOKENS = 12
FREE_TOKENS = 13
FAILS_AT_START = "SAMPLER_WORKER_FAILS_AT_START"


def small_buckets() -> None:
    """Shared ones that a layer of a tiny model does not fit in, on both sides: each is filled again many times."""
    buckets.SHARED_BYTES = buckets.Shared.bucket_bytes = 2**16


class Faulty(serve.Replica):
    """The real one, with an engine that fails on demand."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if FAILS_AT_START in os.environ:
            raise ValueError("No available memory for the cache blocks.")
        super().__init__(*arguments, **options)
        self._real_step = self._llm.llm_engine.step

    def add(self, key: str, request: Request) -> None:
        super().add(key, request)
        steps = {FATAL_TOKENS: self._raise, STUCK_TOKENS: self._sample_nothing, FREE_TOKENS: self._real_step}
        if request.max_tokens in steps:
            self._llm.llm_engine.step = steps[request.max_tokens]

    def _raise(self) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _sample_nothing(self) -> list[Any]:
        time.sleep(0.01)
        return []


def main(config_path: str, replica: str, port: str) -> None:
    torch.set_num_threads(1)
    serve.Replica = Faulty  # type: ignore[misc]
    small_buckets()
    config = Config.model_validate_json(pathlib.Path(config_path).read_text())
    distributed.start()
    store = dist.TCPStore("127.0.0.1", int(port), is_master=False)  # type: ignore[attr-defined]
    place = distributed.Place(samples=True, replica=int(replica), run_rank=1 + int(replica), store=store)
    serve.serve(config, place)


if __name__ == "__main__":
    main(*sys.argv[1:])
