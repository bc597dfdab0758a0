"""Environment variables that torch, vLLM and DeepSpeed read when they are imported. No torch here."""

from __future__ import annotations

import os


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
    if enforce_eager:
        settings["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
