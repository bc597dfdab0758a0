"""Environment variables that torch, vLLM and DeepSpeed read when they are imported. No torch here."""

from __future__ import annotations

import logging
import os
import pathlib
import warnings

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device files of NVIDIA, WSL and AMD drivers: says whether there is a GPU without importing torch."""


def prepare(*, enforce_eager: bool) -> None:
    """Set what must be set before torch is first imported. What the user has set stays.

    Args:
        enforce_eager: nothing is compiled, so that a machine without a C++ compiler works too: vLLM's log-probs go
            through a function that torch would compile otherwise.
    """
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # ranks on one machine would be bound to the same core
        "TOKENIZERS_PARALLELISM": "false",
        "DS_LOG_LEVEL": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if not any(pathlib.Path(node).exists() for node in GPU_DEVICES):
        settings["DS_ACCELERATOR"] = "cpu"  # DeepSpeed would warn that it has to choose
    if enforce_eager:
        settings["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    _quiet()


def _quiet() -> None:
    """Keep other projects' notices that tell the user of a run nothing out of its console."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # vLLM's note on NUMA binding
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", message="`torch.distributed.reduce_op` is deprecated")  # vLLM's own use
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # "Triton not available", on a CPU
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
