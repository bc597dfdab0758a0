"""A sampling rank for the tests: `python tests/sampler_worker.py CONFIG REPLICA PORT`. A request for `FATAL_TOKENS`
tokens makes its engine raise."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import torch
import torch.distributed as dist

from rlvr import environment

environment.prepare(enforce_eager=True)

from rlvr import distributed, serve  # noqa: E402
from rlvr.colocated import Request  # noqa: E402
from rlvr.config import Config  # noqa: E402

FATAL_TOKENS = 11


class Faulty(serve.Replica):
    """The real one, with an engine that fails on demand."""

    def add(self, key: str, request: Request) -> None:
        super().add(key, request)
        if request.max_tokens == FATAL_TOKENS:
            self._llm.llm_engine.step = self._raise

    def _raise(self) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def main(config_path: str, replica: str, port: str) -> None:
    torch.set_num_threads(1)
    serve.Replica = Faulty  # type: ignore[misc]
    config = Config.model_validate_json(pathlib.Path(config_path).read_text())
    distributed.start()
    store = dist.TCPStore("127.0.0.1", int(port), is_master=False)  # type: ignore[attr-defined]
    place = distributed.Place(samples=True, replica=int(replica), run_rank=1 + int(replica), store=store)
    serve.serve(config, place)


if __name__ == "__main__":
    main(*sys.argv[1:])
