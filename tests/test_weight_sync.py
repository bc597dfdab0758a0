"""The proof of sync against a real vLLM engine in this process: what is injected must be detected."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch

from rlvr import environment

environment.prepare(enforce_eager=True)

from rlvr import direct_load, distributed  # noqa: E402
from rlvr.chat import load_tokenizer  # noqa: E402
from rlvr.checksums import row_checksums  # noqa: E402
from rlvr.colocated import Request, Sampled, Sampler  # noqa: E402
from rlvr.config import Config  # noqa: E402
from rlvr.digests import tensor_digest  # noqa: E402
from rlvr.direct_load import DirectLoader  # noqa: E402
from rlvr.errors import LogProbContractError, WeightSyncError  # noqa: E402
from rlvr.learner import Learner  # noqa: E402
from rlvr.packing import pack  # noqa: E402
from rlvr.weight_sync import WeightSync, make_canaries, refuse_disagreement  # noqa: E402
from sft_dpo import quickstart_task  # noqa: E402

pytestmark = pytest.mark.slow

Weights = Iterable[tuple[str, torch.Tensor]]


class Stack:
    """A learner and a sampler of the same tiny model."""

    def __init__(self, folder: pathlib.Path) -> None:
        quickstart_task.write(folder, seed=1, demonstrations=200, train=4, held_out=4, flawed_share=0.5)
        self.config = Config.model_validate(
            {
                "run_dir": str(folder / "run"),
                "model": {"path": str(folder / "model"), "dtype": "float32"},
                "data": {"train": str(folder / "train.jsonl")},
                "rollout": {"prompts_per_step": 4, "max_tokens": 8, "temperature": 0.7},
                "sampler": {"kv_cache_mib": 32, "block_size": 32, "enforce_eager": True},
                "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
                "learner": {"zero_stage": 0},
                "training": {"steps": 1},
            }
        )
        distributed.start()
        self.tokenizer = load_tokenizer(self.config.model.path, None)
        self.learner = Learner(self.config, total_updates=10)
        self.sampler = Sampler(self.config, stop_token_ids=[self.tokenizer.eos_token_id], max_model_len=64)
        self.sync = WeightSync(self.learner, self.sampler, make_canaries(512, count=4, length=16, seed=1))

    def change_weights(self) -> None:
        """What an optimizer step does, without one."""
        generator = torch.Generator().manual_seed(self.sampler.policy_version + 10)
        with torch.no_grad():
            for parameter in self.learner.policy.engine.module.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("stack"))
    yield made
    made.sampler.close()


@pytest.fixture(autouse=True)
def honest(stack: Stack) -> Iterator[None]:
    """Every test begins with changed weights and ends with honest ones published."""
    stack.change_weights()
    yield
    stack.sync.after_gather = lambda weights: weights
    stack.sync.publish()


def test_published_weights_are_the_learners(stack: Stack) -> None:
    report = stack.sync.publish()
    assert report.canary_difference < 1e-5
    own = sum(p.nbytes for p in stack.learner.policy.engine.module.parameters())
    assert report.bytes_sent == own


def test_an_update_reaches_the_tied_output_head(stack: Stack) -> None:
    """vLLM on the CPU keeps a packed copy of a tied head that a reload alone leaves as it was."""
    assert stack.learner.policy.engine.module.transformer.config.tie_word_embeddings
    with torch.no_grad():
        stack.learner.policy.engine.module.transformer.get_input_embeddings().weight *= 1.5
    assert stack.sync.publish().canary_difference < 1e-5


def corrupt_one_element(weights: Weights) -> Weights:
    for name, weight in weights:
        if name.endswith("layers.2.mlp.up_proj.weight"):
            weight = weight.clone()
            weight[3, 5] += 1e-6  # far below what log-probabilities show
        yield name, weight


def leave_one_out(weights: Weights) -> Weights:
    yield from (pair for pair in weights if not pair[0].endswith("layers.1.self_attn.v_proj.weight"))


def leave_a_norm_out(weights: Weights) -> Weights:
    yield from (pair for pair in weights if not pair[0].endswith("layers.1.input_layernorm.weight"))


def stop_half_way(weights: Weights) -> Weights:
    listed = list(weights)
    yield from listed[: len(listed) // 2]


def swap_two_projections(weights: Weights) -> Weights:
    held = {}
    for name, weight in weights:
        if name.endswith(("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight")):
            held[name] = weight
        else:
            yield name, weight
    (first, one), (second, two) = held.items()
    yield first, two
    yield second, one


def reorder_rows(weights: Weights) -> Weights:
    for name, weight in weights:
        yield name, weight.flip(0) if name.endswith("layers.3.mlp.down_proj.weight") else weight


@pytest.fixture(params=["direct", "reload"])
def path(request: pytest.FixtureRequest, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights written straight into vLLM's layers, as from the second update on, or through its own reload."""
    stack.sync.publish()
    stack.change_weights()
    if request.param == "reload":
        monkeypatch.setattr(DirectLoader, "is_ready", False)
    assert stack.sampler._loader.is_ready == (request.param == "direct")
    return str(request.param)


@pytest.mark.parametrize(
    "tamper",
    [corrupt_one_element, leave_one_out, leave_a_norm_out, stop_half_way, swap_two_projections, reorder_rows],
    ids=lambda tamper: tamper.__name__,
)
@pytest.mark.usefixtures("path")
def test_a_tampered_update_stops_the_run(stack: Stack, tamper: Callable[[Weights], Weights]) -> None:
    stack.sync.after_gather = tamper
    with pytest.raises(WeightSyncError, match="does not hold the learner's weights"):
        stack.sync.publish()


@pytest.mark.usefixtures("path")
def test_a_stale_update_stops_the_run(stack: Stack) -> None:
    stale = {name: weight.clone() for name, weight in stack.learner.policy.named_weights()}
    stack.change_weights()
    stack.sync.after_gather = lambda weights: ((name, stale[name]) for name, _ in weights)
    with pytest.raises(WeightSyncError, match="tensors differ"):
        stack.sync.publish()


def test_a_direct_load_gives_what_vllms_reload_gives_bit_for_bit(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.sync.publish()
    stack.change_weights()
    canaries = make_canaries(512, count=8, length=40, seed=2)
    weights = list(stack.learner.policy.named_weights())
    stack.sampler.load_weights(reversed(weights))  # nor does the order matter
    direct = stack.sampler.sequence_logprobs(canaries)
    written = {name: weight.clone() for name, weight in stack.sampler.model().named_parameters()}
    monkeypatch.setattr(DirectLoader, "is_ready", False)
    stack.sampler.load_weights(weights)
    assert stack.sampler.sequence_logprobs(canaries) == direct
    reloaded = dict(stack.sampler.model().named_parameters())
    assert list(written) == list(reloaded)
    assert all(torch.equal(written[name], weight) for name, weight in reloaded.items())


@pytest.mark.parametrize(
    ("tamper", "fault"),
    [
        (lambda weights: [*weights, *weights[:1]], "came twice in one update"),
        (
            lambda weights: [("another", weights[0][1])],
            "weight another is .* first update brought nothing of that name",
        ),
        (lambda weights: [(weights[0][0], weights[0][1][1:])], "where the first update brought"),
        (
            lambda weights: [(weights[0][0], weights[0][1].double())],
            "is torch.float64 .*where the first update brought",
        ),
    ],
)
def test_a_direct_load_refuses_what_the_first_update_did_not_bring(
    stack: Stack, tamper: Callable[[Any], Weights], fault: str
) -> None:
    stack.sync.publish()
    with pytest.raises(WeightSyncError, match=fault):
        stack.sampler.load_weights(tamper(list(stack.learner.policy.named_weights())))


def test_layers_that_are_not_known_are_left_to_vllms_reload(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said once; the updates go on."""
    model = stack.sampler.model()
    monkeypatch.setattr(model, direct_load.ATTRIBUTE, None)  # restored afterwards
    loader = DirectLoader(model, stack.sampler._checksums.learner_names, {})
    monkeypatch.setattr(stack.sampler, "_loader", loader)
    norm = model.get_submodule("model.layers.1.input_layernorm")
    monkeypatch.setattr(norm, "quant_method", object(), raising=False)
    for _ in range(2):
        stack.change_weights()
        assert stack.sync.publish().canary_difference < 1e-5
    assert not loader.is_ready
    assert loader.reason == "model.layers.1.input_layernorm is loaded by object"
    assert (
        capsys.readouterr().out.count("weights go through vLLM's own reload, which is slower: model.layers.1.in") == 1
    )


def test_a_parameter_that_is_not_whole_rows_of_the_learners_is_left_to_vllms_reload(stack: Stack) -> None:
    made = getattr(stack.sampler.model(), direct_load.ATTRIBUTE)
    try:
        loader = DirectLoader(stack.sampler.model(), stack.sampler._checksums.learner_names, {})
        weights = dict(stack.learner.policy.named_weights())
        name = "model.layers.0.self_attn.k_proj.weight"
        for weight in (weights[name][:, 1:], weights[name].double()):
            loader = DirectLoader(stack.sampler.model(), stack.sampler._checksums.learner_names, {})
            list(loader.watch({**weights, name: weight}.items()))
            assert loader.take_over()
            assert not loader.is_ready
            assert loader.reason is not None
            assert loader.reason.startswith("model.layers.0.self_attn.qkv_proj.weight is not made of whole rows of")
    finally:
        setattr(stack.sampler.model(), direct_load.ATTRIBUTE, made)


def test_canaries_see_a_head_that_the_tensors_do_not_show(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlvr.colocated._repack_tied_head", lambda model: None)
    with pytest.raises(WeightSyncError, match="canary log-probabilities differ"):
        stack.sync.publish()


def sample(stack: Stack, requests: list[Request]) -> list[Sampled]:
    found: dict[int, Sampled] = {}
    stack.sampler.generate(requests, found.__setitem__)
    return [found[index] for index in range(len(requests))]


def requests(count: int, temperature: float = 0.7) -> list[Request]:
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, 512, (count, 9), generator=draw).tolist()
    return [Request(token_ids=p, seed=i, temperature=temperature, max_tokens=8) for i, p in enumerate(prompts)]


def test_sampled_logprobs_are_the_learners_at_the_sampling_temperature(stack: Stack) -> None:
    stack.sync.publish()
    asked = requests(16)
    answers = sample(stack, asked)
    rows = pack([r.token_ids for r in asked], [a.token_ids for a in answers], max_tokens=128)
    sampled = torch.tensor([p for a in answers for p in a.logprobs])
    learned = torch.zeros_like(sampled)
    with stack.learner.policy.inference():
        for row in rows:
            learned[row.token_index] = stack.learner.policy(row, 0.7)[0]
    assert (sampled - learned).abs().max().item() < 2e-5


def test_a_completion_depends_on_its_seed_and_not_on_its_company(stack: Stack) -> None:
    stack.sync.publish()
    asked = requests(12)
    together = [answer.token_ids for answer in sample(stack, asked)]
    alone = [sample(stack, [request])[0].token_ids for request in asked[:3]]
    assert together[:3] == alone
    assert len(set(together)) > 1
    assert [answer.token_ids for answer in sample(stack, asked)] == together


def test_greedy_is_the_argmax_of_the_learner(stack: Stack) -> None:
    stack.sync.publish()
    asked = requests(4, temperature=0.0)
    for request, answer in zip(asked, sample(stack, asked), strict=True):
        tokens = list(request.token_ids)
        transformer = stack.learner.policy.engine.module.transformer
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_config(transformer.config, attn_implementation="sdpa").eval()
        plain.load_state_dict(transformer.state_dict())
        for token in answer.token_ids:
            with torch.no_grad():
                assert plain(torch.tensor([tokens])).logits[0, -1].argmax().item() == token
            tokens.append(token)


def test_disagreement_over_the_tolerance_is_refused() -> None:
    refuse_disagreement(9e-5, 1e-4)
    for difference in (2e-4, float("nan")):
        with pytest.raises(LogProbContractError, match="differ by"):
            refuse_disagreement(difference, 1e-4)


def test_a_digest_sees_position_value_and_dtype() -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    seen = {tuple(tensor_digest(weight).tolist())}
    for first in range(12):
        changed = weight.clone().view(-1)
        changed[first] = -changed[first]  # one bit
        seen.add(tuple(tensor_digest(changed).tolist()))
        for second in range(first):
            swapped = weight.clone().view(-1)
            swapped[[first, second]] = swapped[[second, first]]
            seen.add(tuple(tensor_digest(swapped).tolist()))
    assert len(seen) == 1 + 12 + 66
    assert not torch.equal(tensor_digest(weight.bfloat16()), tensor_digest(weight))
    assert torch.equal(tensor_digest(weight.T.contiguous().T), tensor_digest(weight))


def test_row_checksums_see_position_value_and_dtype() -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    whole = row_checksums(weight)
    assert whole.shape == (3,)
    swapped = weight.clone()
    swapped[1, 0], swapped[1, 1] = weight[1, 1], weight[1, 0]
    assert (row_checksums(swapped) == whole).tolist() == [True, False, True]
    assert torch.equal(row_checksums(torch.cat([weight, weight])), torch.cat([whole, whole]))
    assert not torch.equal(row_checksums(weight.bfloat16()), whole)
