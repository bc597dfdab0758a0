"""What every test shares: no network, repeatable hypothesis, and a reason wherever a test cannot run here."""

from __future__ import annotations

import os
import pathlib

import hypothesis
import pytest

# before anything imports transformers, datasets or vLLM: a test never waits for a network
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# no deadline: a test never fails because the machine is busy; the same examples on every run
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False"))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of `first_letter.write_task`."""
    from first_letter import write_task

    folder = tmp_path_factory.mktemp("task")
    write_task(folder)
    return folder


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real public data beside the checkout (`../shared/data`), where there is any."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data with real data beside the checkout")
    return folder
