"""Merging: averages and task vectors equal those of whole models, shard by shard; what does not fit is refused."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import make_model

from rlvr.errors import ConfigError, RunDirectoryError
from sft_dpo.cli import main
from sft_dpo.merge import merge, plan, read_headers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    folder = tmp_path_factory.mktemp("merge")
    return [pathlib.Path(make_model(folder / name, seed=seed)) for seed, name in enumerate(("base", "one", "two"))]


def whole(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_an_average_divides_by_the_sum_of_the_weights(models: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    _, one, two = models
    merge(tmp_path / "out", {one: 3.0, two: 1.0}, base=None, shard_mib=1)
    left, right, merged = whole(one), whole(two), whole(tmp_path / "out")
    assert merged.keys() == left.keys()
    for name, tensor in merged.items():
        assert torch.allclose(tensor, 0.75 * left[name] + 0.25 * right[name], atol=1e-7)


def test_task_vectors_are_added_to_their_base(models: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    base, one, two = models
    merge(tmp_path / "out", {one: 1.0, two: 0.5}, base=base, shard_mib=1)
    start, left, right, merged = (whole(folder) for folder in (base, one, two, tmp_path / "out"))
    for name, tensor in merged.items():
        expected = start[name] + (left[name] - start[name]) + 0.5 * (right[name] - start[name])
        assert torch.allclose(tensor, expected, atol=1e-6)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # with its config
    assert torch.equal(loaded.state_dict()["lm_head.weight"], merged["lm_head.weight"])


def test_shards_are_small_indexed_and_read_again(
    models: list[pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, one, two = models
    merge(tmp_path / "whole", {one: 0.5, two: 0.5}, base=None, shard_mib=1)
    monkeypatch.setattr("sft_dpo.merge.MIB", 1024)  # 4 kB a shard
    merge(tmp_path / "shards", {one: 0.5, two: 0.5}, base=None, shard_mib=4)
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2
    largest = max(tensor.numel() * 4 for tensor in whole(one).values())
    assert all(sum(t.numel() * 4 for t in load_file(file).values()) <= max(4096, largest) for file in files)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 4 for tensor in whole(one).values())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "shards").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole(tmp_path / "whole").items())
    merge(tmp_path / "again", {tmp_path / "shards": 1.0}, base=None, shard_mib=1_000)
    assert all(
        torch.equal(whole(tmp_path / "again")[name], tensor) for name, tensor in whole(tmp_path / "whole").items()
    )


def test_bfloat16_is_summed_exactly_and_rounded_once(tmp_path: pathlib.Path) -> None:
    for name, value in (("one", 1.0), ("two", 1.0078125), ("three", 1.0)):  # 1 + 2^-7, the next bfloat16
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((3,), value, dtype=torch.bfloat16)}, tmp_path / name / "model.safetensors")
    merge(tmp_path / "out", {tmp_path / n: 1.0 for n in ("one", "two", "three")}, base=None, shard_mib=1)
    merged = whole(tmp_path / "out")["w"]
    assert merged.dtype == torch.bfloat16
    assert merged.tolist() == [1.0] * 3  # 1.0026, nearer to 1 than to 1.0078


def test_models_with_other_tensors_are_refused_with_what_differs(
    models: list[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    _, one, _ = models
    changed = whole(one)
    changed["extra.weight"] = torch.zeros(2)
    changed["lm_head.weight"] = changed["lm_head.weight"][:5].clone()
    changed["model.norm.weight"] = changed["model.norm.weight"].bfloat16()
    other = tmp_path / "other"
    other.mkdir()
    save_file(changed, other / "model.safetensors")
    with pytest.raises(ConfigError) as caught:
        merge(tmp_path / "out", {one: 1.0, other: 1.0}, base=None, shard_mib=1)
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        f"  extra.weight is only in {other}, not in the other",
        f"  shape of lm_head.weight: (61, 16) in {one}, (5, 16) in {other}",
        f"  dtype of model.norm.weight: F32 in {one}, BF16 in {other}",
    ]
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"holds neither model.safetensors nor"):
        read_headers(tmp_path)


def test_a_plan_gives_every_tensor_one_place(models: list[pathlib.Path]) -> None:
    tensors = read_headers(models[0])
    for most in (1, 1000, 5000, 10**9):
        shards = plan(tensors, most)
        assert [name for shard in shards for name in shard] == list(tensors)
        assert all(shards)
    assert len(plan(tensors, 1)) == len(tensors)


def test_the_command_merges_overwrites_nothing_and_says_how_to_spell_a_model(
    models: list[pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, one, two = map(str, models)
    out = str(tmp_path / "out")
    assert main(["merge", out, f"{one}=0.5", f"{two}=0.5", "--base", base]) == 0
    assert capsys.readouterr().out == f"{out}: 0.5 x {one} + 0.5 x {two}\n"
    assert main(["merge", out, f"{one}=0.5"]) == 2
    assert "exists already" in capsys.readouterr().err
    for wrong, text in (
        ([one], "FOLDER=WEIGHT"),
        ([f"{one}=1", f"{one}=2"], "named twice"),
        ([f"{one}=0"], "add up to 0"),
    ):
        assert main(["merge", str(tmp_path / "new"), *wrong]) == 2
        assert text in capsys.readouterr().err
    with pytest.raises(RunDirectoryError):
        merge(tmp_path / "out", {models[1]: 1.0}, base=None, shard_mib=1)
