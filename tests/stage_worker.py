"""What one rank does in the tests of the stages: `torchrun ... tests/stage_worker.py FOLDER OUTPUT`."""

from __future__ import annotations

import json
import pathlib
import sys

import torch
from stage_tiny import outcome

from rlvr import distributed


def main(folder: str, cases: str, output: str) -> None:
    torch.set_num_threads(1)
    distributed.start(timeout_seconds=120)
    results = {name: outcome(pathlib.Path(folder), *case) for name, case in json.loads(cases).items()}
    if distributed.rank() == 0:
        torch.save(results, output)
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
