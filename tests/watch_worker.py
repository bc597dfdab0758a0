"""Runs of two ranks that go wrong: `python tests/watch_worker.py OUTPUT SECONDS FAULT...`. Rank 1 has the fault.

All runs go at once, forked from this process, which holds their stores as torchrun does, and kills the rank that is
left when the other one has ended. OUTPUT/FAULT/RANK is what a rank said; the statuses of those that ended first are
printed as JSON.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import sys
import time
import traceback

import torch
import torch.distributed as dist

from rlvr import distributed, watch


def rank_main(fault: str, seconds: float) -> None:
    is_faulty = os.environ["RANK"] == "1"
    if is_faulty and fault == "does not come":
        time.sleep(600)
    distributed.start(stall_timeout_seconds=seconds)
    watch.at("step 1, update")
    distributed.barrier()
    if is_faulty and fault == "sleeps":
        hang()
    if is_faulty and fault == "is stopped":
        time.sleep(0.5)  # until it has told where it is
        os.kill(os.getpid(), signal.SIGSTOP)
    if is_faulty and fault == "works on":  # longer than the limit, and shows it
        for _ in range(int(6 * seconds)):
            time.sleep(0.25)
            watch.moved()
    distributed.barrier()
    distributed.stop()
    print("done", flush=True)


def hang() -> None:
    time.sleep(600)


def fork(folder: pathlib.Path, fault: str, rank: int, port: int, seconds: float) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
        said = os.open(folder / fault / str(rank), os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        rank_main(fault, seconds)
        status = 0
    except BaseException:  # noqa: BLE001 - a forked rank must end here, whatever happened, and say what
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def main(output: str, seconds: str, *faults: str) -> None:
    torch.set_num_threads(1)
    folder = pathlib.Path(output)
    ports = {fault: free_port() for fault in faults}
    pairs: dict[str, set[int]] = {}
    for fault, port in ports.items():
        (folder / fault).mkdir()
        pairs[fault] = {fork(folder, fault, rank, port, float(seconds)) for rank in range(2)}
    stores = [dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False) for port in ports.values()]  # type: ignore[attr-defined]
    first: dict[str, int] = {}
    while any(pairs.values()):
        pid, status = os.wait()
        fault = next(name for name, pids in pairs.items() if pid in pids)
        pairs[fault].remove(pid)
        if first.setdefault(fault, os.waitstatus_to_exitcode(status)) != 0:
            for left in pairs[fault]:
                os.kill(left, signal.SIGKILL)
    del stores
    print(json.dumps(first))


if __name__ == "__main__":
    main(*sys.argv[1:])
