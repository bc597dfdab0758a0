"""One engine on one rank: AdamW exactly, clipping, schedules, refusal of non-finite gradients, resuming."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import pytest
import torch
from tiny import largest_difference, make_model, weights
from torch import nn

from rlvr import distributed
from rlvr.config import Optimizer
from rlvr.engine import Engine, learning_rate_at
from rlvr.errors import NonFiniteError
from rlvr.model import load_policy
from rlvr.packing import pack

OFFLOADS: dict[int | str, tuple[int, dict[str, bool]]] = {
    "1, optimizer offloaded": (1, {"offload_optimizer": True}),
    "2, optimizer offloaded": (2, {"offload_optimizer": True}),
    "3, optimizer offloaded": (3, {"offload_optimizer": True}),
    "3, all offloaded": (3, {"offload_optimizer": True, "offload_parameters": True}),
    "3, parameters offloaded": (3, {"offload_parameters": True}),
}
STAGES = [0, 1, 2, 3, *OFFLOADS]


class Line(nn.Module):
    """w . x, so that the gradient of the loss is x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight * x).sum()


def line(stage: int | str = 0, *, dtype: str = "float32", total: int = 10, **options: Any) -> Engine:
    distributed.start()
    settings = {"learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.0, "max_gradient_norm": 1e6} | options
    model = Line() if dtype == "float32" else Line().bfloat16()
    zero, offload = OFFLOADS.get(stage, (stage, {}))
    return Engine("line", model, Optimizer(**settings), zero_stage=zero, dtype=dtype, total_updates=total, **offload)


def push(engine: Engine, *gradients: list[float]) -> float:
    for gradient in gradients:
        engine.backward(engine(torch.tensor(gradient)))
    return engine.step()


def moved(engine: Engine) -> list[float]:
    return (weights(engine)["weight"] - torch.tensor([1.0, -2.0, 3.0])).tolist()


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_updates_are_those_of_adamw_by_hand(stage: int | str) -> None:
    engine = line(stage, epsilon=1.0)
    # first AdamW update: -lr g / (|g| + eps): -0.1 x 3/4 = -0.075, 0.1 x 4/5 = 0.08, 0
    assert push(engine, [3.0, -4.0, 0.0]) == pytest.approx(5.0)
    assert moved(engine) == pytest.approx([-0.075, 0.08, 0.0], abs=1e-6)
    # second, same gradient: both averages are bias-corrected to g and g^2 again, so the same move
    push(engine, [3.0, -4.0, 0.0])
    assert moved(engine) == pytest.approx([-0.15, 0.16, 0.0], abs=1e-6)
    assert engine.updates == 2


@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_add_up_until_step_and_no_further(stage: int | str) -> None:
    engine = line(stage)
    assert push(engine, [1.0, 0.0, 2.0], [2.0, -4.0, -2.0]) == pytest.approx(5.0)  # sum 3, -4, 0
    assert push(engine, [0.0, 0.0, 2.0]) == pytest.approx(2.0)  # nothing is left over from the update before


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_clipped_to_the_configured_norm(stage: int | str) -> None:
    engine = line(stage, epsilon=1.0, max_gradient_norm=1.0)
    # the norm 5 is reported as it was; the gradient becomes 0.6, -0.8, 0: moves -0.1 x 0.6/1.6, 0.1 x 0.8/1.8
    assert push(engine, [3.0, -4.0, 0.0]) == pytest.approx(5.0)
    assert moved(engine) == pytest.approx([-0.0375, 0.0444444, 0.0], abs=1e-5)
    small = line(stage, epsilon=1.0, max_gradient_norm=1.0)
    push(small, [0.3, -0.4, 0.0])  # norm 0.5: untouched; -0.1 x 0.3/1.3, 0.1 x 0.4/1.4
    assert moved(small) == pytest.approx([-0.0230769, 0.0285714, 0.0], abs=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_of_the_optimizer_takes_effect(stage: int | str) -> None:
    gradients = ([3.0, -4.0, 1.0], [1.0, 2.0, -1.0], [0.5, 0.5, 0.5])
    base = {"epsilon": 0.5, "weight_decay": 0.3, "beta1": 0.7, "beta2": 0.8, "learning_rate": 0.05}
    engine = line(stage, **base)
    for gradient in gradients:
        push(engine, gradient)
    parameter = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    plain = torch.optim.AdamW([parameter], lr=0.05, betas=(0.7, 0.8), eps=0.5, weight_decay=0.3)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        plain.step()
    torch.testing.assert_close(weights(engine)["weight"], parameter.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_schedule_reaches_the_optimizer(stage: int | str, schedule: str) -> None:
    engine = line(stage, epsilon=1e-12, schedule=schedule, warmup_ratio=0.4, total=5, learning_rate=1.0)
    # with a constant gradient and no epsilon every AdamW update moves by exactly the learning rate
    # warm-up over 2 of 5 updates: 1/2, 1; then progress 0, 1/3, 2/3
    after = {"constant": [1, 1, 1], "linear": [1, 2 / 3, 1 / 3], "cosine": [1, 0.75, 0.25]}
    before = weights(engine)["weight"]
    moves, told = [], []
    for _ in range(5):
        told.append(engine.learning_rate())
        push(engine, [1.0, 1.0, 1.0])
        now = weights(engine)["weight"]
        moves.append((before - now)[0].item())
        before = now
    assert moves == pytest.approx([0.5, 1.0, *after[schedule]], abs=1e-5)
    assert told == pytest.approx(moves, abs=1e-5)


def test_the_schedules_by_hand() -> None:
    cosine = Optimizer(learning_rate=2.0, schedule="cosine")
    # 2 x 0.5 (1 + cos(pi u / 4)): u = 0: 2; u = 1: 1 + 0.7071; u = 2: 1; past the end: 0
    rates = [learning_rate_at(u, 4, cosine) for u in (0, 1, 2, 4, 9)]
    assert rates == pytest.approx([2.0, 1.0 + math.sqrt(0.5), 1.0, 0.0, 0.0])
    constant = Optimizer(learning_rate=2.0, schedule="constant", warmup_ratio=0.5)
    assert [learning_rate_at(u, 4, constant) for u in range(4)] == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_an_error_and_changes_no_weight(stage: int | str, bad: float) -> None:
    engine = line(stage, max_gradient_norm=1.0)
    push(engine, [1.0, 1.0, 1.0])
    before = weights(engine)
    assert engine.gradient_is_finite()
    engine.backward(engine(torch.tensor([1.0, 1.0, 1.0])))
    engine.backward(engine(torch.tensor([1.0, bad, 1.0])))
    assert not engine.gradient_is_finite()  # known before the update
    with pytest.raises(NonFiniteError, match="line's gradient is not finite at update 2"):
        engine.step()
    assert largest_difference(before, weights(engine)) == 0.0
    assert engine.updates == 1


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_offloads_what_was_asked_for_and_no_more(stage: int | str) -> None:
    engine = line(stage)
    _, asked = OFFLOADS.get(stage, (stage, {}))
    taken = {
        "offload_optimizer": engine.engine.zero_offload_optimizer() is not None,
        "offload_parameters": engine.engine.zero_offload_param() is not None,
    }
    assert taken == {"offload_optimizer": False, "offload_parameters": False} | asked
    # torch's, which needs no compiler; DeepSpeed would put its own in its place
    assert type(engine.engine.basic_optimizer) is torch.optim.AdamW


@pytest.mark.parametrize("stage", [1, 2, 3, *OFFLOADS])
def test_a_bfloat16_gradient_that_is_not_finite_is_an_error_too(stage: int | str) -> None:
    engine = line(stage, dtype="bfloat16")
    before = weights(engine)
    engine.backward(engine(torch.tensor([1.0, math.nan, 1.0]).bfloat16()))
    with pytest.raises(NonFiniteError):
        engine.step()
    assert largest_difference(before, weights(engine)) == 0.0


@pytest.mark.parametrize("stage", [1, 2, 3, *OFFLOADS])
def test_bfloat16_updates_are_adamw_on_float32_master_weights(stage: int | str) -> None:
    engine = line(stage, dtype="bfloat16", learning_rate=1e-3, epsilon=1e-12)
    for _ in range(4):  # each update moves by 0.001, less than the spacing of bfloat16 at 1 (0.0078 up, 0.0039 down)
        engine.backward(engine(torch.tensor([1.0, 1.0, 1.0]).bfloat16()))
        engine.step()
    # 1 - 0.004 rounds to 1 - 0.00390625: without master weights the updates would all have been lost
    assert moved(engine)[0] == pytest.approx(-0.00390625)


def test_inference_is_without_gradient_and_leaves_training_mode_on() -> None:
    engine = line()
    with engine.inference():
        assert not engine.engine.module.training
        assert not engine(torch.ones(3)).requires_grad
    assert engine.engine.module.training


def test_gradient_checkpointing_computes_again_from_the_first_update_on(tmp_path: pathlib.Path) -> None:
    """`transformers` reads a model in eval mode, where it would not."""
    distributed.start()
    model = load_policy(make_model(tmp_path), dtype="float32", gradient_checkpointing=True, logits_chunk_tokens=None)
    engine = Engine("policy", model, Optimizer(), zero_stage=0, dtype="float32", total_updates=1)
    computed: list[int] = []
    model.transformer.base_model.layers[0].self_attn.register_forward_hook(lambda *_: computed.append(1))
    (row,) = pack([(1, 2)], [(3, 4)], max_tokens=8)
    engine.backward(engine(row, 1.0)[0].sum())
    assert len(computed) == 2


@pytest.mark.parametrize("stage", range(4))
def test_weights_have_the_names_of_the_hugging_face_model(stage: int, tmp_path: pathlib.Path) -> None:
    distributed.start()
    model = load_policy(make_model(tmp_path), dtype="float32", gradient_checkpointing=False, logits_chunk_tokens=1024)
    names = {name: parameter.detach().clone() for name, parameter in model.transformer.named_parameters()}
    engine = Engine("policy", model, Optimizer(), zero_stage=stage, dtype="float32", total_updates=1)
    assert largest_difference(weights(engine), names) == 0.0


@pytest.mark.parametrize("stage", [0, 2])
def test_a_restored_engine_continues_as_if_nothing_had_happened(stage: int, tmp_path: pathlib.Path) -> None:
    gradients = ([1.0, 2.0, 3.0], [-1.0, 0.5, 0.25], [2.0, 2.0, -2.0], [1.0, -3.0, 0.125])
    options: dict[str, Any] = {"schedule": "linear", "total": 4, "weight_decay": 0.1}
    whole, first, second = (line(stage, **options) for _ in range(3))
    for gradient in gradients:
        push(whole, gradient)
    for gradient in gradients[:2]:
        push(first, gradient)
    first.save(str(tmp_path))
    second.load(str(tmp_path))
    assert second.updates == 2
    for gradient in gradients[2:]:
        push(second, gradient)
    assert largest_difference(weights(whole), weights(second)) == 0.0
