"""Packed models answer as `transformers` does one sequence at a time, for every family, in values and gradients."""

from __future__ import annotations

import pathlib

import pytest
import safetensors.torch
import torch
import transformers
from test_attention import documented_varlen
from tiny import EVERY_FAMILY, SHAPE, VOCABULARY, make_model, model_config, sequences

from rlvr.errors import ConfigError
from rlvr.model import PolicyModel, ValueModel, load_critic, load_policy
from rlvr.packing import pack
from rlvr.records import PackedRow

PAIRS = sequences(5, 7, longest=24)
TEMPERATURE = 0.7


def policy_of(path: str, *, chunk: int = 1024, checkpointing: bool = False, dtype: str = "float32") -> PolicyModel:
    return load_policy(path, dtype=dtype, gradient_checkpointing=checkpointing, logits_chunk_tokens=chunk)


def critic_of(init: str, policy_path: str, *, seed: int = 1, checkpointing: bool = False) -> ValueModel:
    generator = torch.Generator().manual_seed(seed)
    return load_critic(init, policy_path, dtype="float32", gradient_checkpointing=checkpointing, generator=generator)


def rows_of(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = PAIRS, most: int = 40) -> list[PackedRow]:
    return pack([p for p, _ in pairs], [c for _, c in pairs], max_tokens=most)


def in_order(rows: list[PackedRow], outputs: list[torch.Tensor]) -> torch.Tensor:
    flat = torch.cat(outputs)
    out = torch.empty_like(flat)
    out[torch.cat([row.token_index for row in rows])] = flat
    return out


@pytest.mark.parametrize("back_end", ["packed_sdpa", "packed_varlen"])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_packed_log_probabilities_equal_those_of_the_plain_model_one_by_one(
    family: str, back_end: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if back_end == "packed_varlen":  # its kernel is for GPUs (tests/test_gpu.py); what it is documented to do is not
        monkeypatch.setattr("rlvr.model.attention_name", lambda dtype: back_end)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documented_varlen)
    path = make_model(tmp_path, family)
    plain = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    expected, entropies = [], []
    for prompt, completion in PAIRS:
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        distribution = torch.distributions.Categorical(logits=logits / TEMPERATURE)
        expected.append(distribution.log_prob(torch.tensor(completion)))
        entropies.append(distribution.entropy())
    policy, rows = policy_of(path), rows_of()
    assert policy.transformer.config._attn_implementation == back_end
    assert len(rows) > 1
    assert any(len(row.sequences) > 1 for row in rows)
    with torch.no_grad():
        outputs = [policy(row, TEMPERATURE) for row in rows]
    torch.testing.assert_close(in_order(rows, [o[0] for o in outputs]), torch.cat(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(in_order(rows, [o[1] for o in outputs]), torch.cat(entropies), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_packed_values_equal_those_of_the_plain_classifier_one_by_one(family: str, tmp_path: pathlib.Path) -> None:
    path = make_model(tmp_path, family, kind="SequenceClassification")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    expected = []
    for prompt, completion in PAIRS:
        with torch.no_grad():
            hidden = plain.base_model(input_ids=torch.tensor([[*prompt, *completion]])).last_hidden_state
            expected.append(plain.score(hidden)[0, len(prompt) - 1 : -1, 0])
    critic, rows = critic_of(path, "unused"), rows_of()
    with torch.no_grad():
        values = in_order(rows, [critic(row) for row in rows])
    torch.testing.assert_close(values, torch.cat(expected), rtol=0, atol=1e-5)


def test_windows_shorter_than_a_sequence_matter_in_these_tests(tmp_path: pathlib.Path) -> None:
    narrow = policy_of(make_model(tmp_path / "narrow", "Mistral"))
    wide = policy_of(make_model(tmp_path / "narrow", "Mistral"))
    for layer in wide.transformer.model.layers:
        layer.self_attn.sliding_window = 1000
        layer.self_attn.config.sliding_window = 1000
    row = rows_of()[0]
    with torch.no_grad():
        assert (narrow(row, 1.0)[0] - wide(row, 1.0)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("back_end", ["packed_sdpa", "packed_varlen"])
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma2", "Gemma3Text", "Olmo3", "Phi3", "Qwen2 with windows"])
def test_one_sample_never_sees_another(
    family: str, back_end: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlvr.model.attention_name", lambda dtype: back_end)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documented_varlen)
    policy = policy_of(make_model(tmp_path, family))
    before, after = rows_of(most=1000)[0], None
    for changed in range(len(PAIRS)):
        pairs = list(PAIRS)
        pairs[changed] = tuple(tuple((t + 1) % VOCABULARY for t in part) for part in PAIRS[changed])  # type: ignore[assignment]
        after = rows_of(pairs, most=1000)[0]
        with torch.no_grad():
            one, other = in_order([before], [policy(before, 1.0)[0]]), in_order([after], [policy(after, 1.0)[0]])
        lengths = [len(completion) for _, completion in PAIRS]
        for i, (a, b) in enumerate(zip(one.split(lengths), other.split(lengths), strict=True)):
            assert torch.equal(a, b) == (i != changed)  # bit for bit


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_head_in_chunks_equals_a_whole_one_in_value_and_gradient(
    tied: bool, checkpointing: bool, tmp_path: pathlib.Path
) -> None:
    path = make_model(tmp_path, "Llama tied" if tied else "Llama")
    row = rows_of(most=1000)[0]
    coefficients = torch.randn(len(row.targets), generator=torch.Generator().manual_seed(2))
    results = []
    for chunk, checkpoints in ((10_000, False), (3, checkpointing), (1, checkpointing)):
        policy = policy_of(path, chunk=chunk, checkpointing=checkpoints).train()
        logprobs, entropy = policy(row, TEMPERATURE)
        assert not entropy.requires_grad
        (coefficients * logprobs).sum().backward()
        results.append((logprobs.detach(), entropy, {n: p.grad for n, p in policy.named_parameters()}))
    whole = results[0]
    for chunked in results[1:]:
        torch.testing.assert_close(chunked[0], whole[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(chunked[1], whole[1], rtol=0, atol=1e-5)
        assert whole[2].keys() == chunked[2].keys()
        for name, gradient in whole[2].items():
            assert gradient is not None
            assert gradient.abs().max() > 0
            torch.testing.assert_close(chunked[2][name], gradient, rtol=1e-4, atol=1e-4)


def test_packed_gradients_equal_those_of_the_plain_model_one_by_one(tmp_path: pathlib.Path) -> None:
    path = make_model(tmp_path, "Llama")
    plain = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    for prompt, completion in PAIRS:
        logits = plain(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.distributions.Categorical(logits=logits / TEMPERATURE).log_prob(torch.tensor(completion))
        logprobs.sum().backward()
    policy = policy_of(path).train()
    for row in rows_of():
        policy(row, TEMPERATURE)[0].sum().backward()
    ours = {name.removeprefix("transformer."): p.grad for name, p in policy.named_parameters()}
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_the_entropy_of_a_uniform_and_of_a_certain_distribution(tmp_path: pathlib.Path) -> None:
    policy = policy_of(make_model(tmp_path, "Llama"))
    row = rows_of()[0]
    policy.transformer.lm_head.weight.data.zero_()
    logprobs, entropy = policy(row, 1.0)
    # ln 61 = 4.110874
    torch.testing.assert_close(entropy, torch.full_like(entropy, 4.110874), rtol=0, atol=1e-5)
    torch.testing.assert_close(logprobs, torch.full_like(entropy, -4.110874), rtol=0, atol=1e-5)


def test_a_lower_temperature_sharpens_and_one_over_it_multiplies_the_logits(tmp_path: pathlib.Path) -> None:
    path = make_model(tmp_path, "Llama")
    row = rows_of()[0]
    cool = policy_of(path)
    doubled = policy_of(path)
    doubled.transformer.lm_head.weight.data.mul_(2.0)
    with torch.no_grad():
        torch.testing.assert_close(cool(row, 0.5)[0], doubled(row, 1.0)[0], rtol=0, atol=1e-5)
        assert cool(row, 0.5)[1].mean() < cool(row, 1.0)[1].mean()


@pytest.mark.parametrize(
    ("family", "knobs"),
    [("Llama", {"attention_dropout": 0.5}), ("Phi3", {"resid_pdrop": 0.5, "attention_dropout": 0.5})],
)
def test_dropout_is_off_in_training_mode_too(family: str, knobs: dict[str, float], tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(model_config(family, **knobs)).save_pretrained(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).train()
    ids = torch.tensor([PAIRS[0][0] + PAIRS[0][1]])
    assert not torch.equal(plain(ids).logits, plain(ids).logits)  # the knobs do something in this family
    policy, row = policy_of(str(tmp_path)).train(), rows_of()[0]
    assert torch.equal(policy(row, 1.0)[0], policy(row, 1.0)[0])
    for critic in (critic_of("policy", str(tmp_path)).train(), critic_of("scratch", str(tmp_path)).train()):
        assert torch.equal(critic(row), critic(row))


def test_a_bfloat16_policy_answers_in_float32_close_to_the_float32_one(tmp_path: pathlib.Path) -> None:
    path, row = make_model(tmp_path, "Llama"), rows_of(PAIRS[:2])[0]
    with torch.no_grad():
        half, full = policy_of(path, dtype="bfloat16")(row, 1.0)[0], policy_of(path)(row, 1.0)[0]
    assert half.dtype == torch.float32
    assert 1e-5 < (half - full).abs().mean() < 0.2  # logits of several nats at 8 bits of precision


def test_a_critic_from_the_policy_has_its_transformer_and_a_seeded_head(tmp_path: pathlib.Path) -> None:
    path = make_model(tmp_path, "Llama")
    critic, again, other = (critic_of("policy", path, seed=seed) for seed in (1, 1, 2))
    policy = policy_of(path)
    ours = dict(critic.transformer.model.named_parameters())
    for name, parameter in policy.transformer.model.named_parameters():
        assert torch.equal(ours[name], parameter)
    assert critic.transformer.score.weight.shape == (1, 16)
    assert torch.equal(critic.transformer.score.weight, again.transformer.score.weight)
    assert not torch.equal(critic.transformer.score.weight, other.transformer.score.weight)


def test_the_heads_of_new_critics_have_variance_one_over_width_plus_one(tmp_path: pathlib.Path) -> None:
    path = make_model(tmp_path, "Llama")
    heads = torch.cat([critic_of("policy", path, seed=seed).transformer.score.weight.flatten() for seed in range(30)])
    # 480 draws of variance 1/17 = 0.0588; the estimate's standard error is 0.0588 sqrt(2/480) = 0.0038
    assert heads.var().item() == pytest.approx(1 / 17, abs=4 * 0.0038)


def test_a_critic_from_scratch_shares_nothing_with_the_policy_and_repeats_by_seed(tmp_path: pathlib.Path) -> None:
    path = make_model(tmp_path, "Llama")
    global_state = torch.random.get_rng_state()
    one = dict(critic_of("scratch", path, seed=1).named_parameters())
    torch.manual_seed(99)  # whatever happened to the global generator in between
    again, other = (dict(critic_of("scratch", path, seed=seed).named_parameters()) for seed in (1, 2))
    torch.random.set_rng_state(global_state)
    assert all(torch.equal(one[name], again[name]) for name in one)
    policy = dict(policy_of(path).named_parameters())
    name = "transformer.model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], policy[name])


def test_a_critic_from_a_causal_model_is_refused_instead_of_given_a_random_head(tmp_path: pathlib.Path) -> None:
    path = make_model(tmp_path, "Llama")
    with pytest.raises(ConfigError, match="LlamaForCausalLM"):
        critic_of(path, path)


def test_a_model_whose_logits_are_scaled_is_refused_instead_of_read_unscaled(tmp_path: pathlib.Path) -> None:
    config = transformers.GraniteConfig(**SHAPE, logits_scaling=8.0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"logits_scaling=8\.0"):
        policy_of(str(tmp_path))


def test_a_folder_that_lacks_a_weight_is_refused_instead_of_drawn_at_random(tmp_path: pathlib.Path) -> None:
    path = make_model(tmp_path, "Llama")
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (policy_of, lambda path: critic_of("policy", path)):
        with pytest.raises(
            ConfigError, match=r"1 of its weights are not in its files, e\.g\. 'model\.layers\.1\.mlp\.up"
        ):
            load(path)


def test_a_model_whose_attention_has_sinks_is_refused_whatever_computes_it(tmp_path: pathlib.Path) -> None:
    transformers.GptOssConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="attention of gpt_oss has sinks"):
        policy_of(str(tmp_path))


def test_a_model_that_is_not_there_is_a_config_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="folder without a model"):
        policy_of(str(tmp_path))
    with pytest.raises(ConfigError, match="folder without a model"):
        critic_of(str(tmp_path), "unused")
    with pytest.raises(ConfigError, match="no such folder"):
        policy_of(str(tmp_path / "nothing"))
