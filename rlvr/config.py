"""The recipe: every option of a run, with Tülu 3's value as default where Tülu 3 has one.

A recipe is TOML. `extends = "base.toml"` starts from another one; `a.b=value` on the command line overrides in
the same spelling. This module imports no torch, so that a recipe is checked in a blink (`rlvr.recipe` reads it).
Tülu 3 values are from arXiv 2411.15124v5, Table 21 and section 6.2 (8B column).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
import pydantic_core
from pydantic import Field

from rlvr.contradictions import WHITENED, contradictions

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Seconds = Annotated[float, Field(gt=0.0)]


class Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Lora(Section):
    """Train low-rank adapters instead of the model's own weights (arXiv 2106.09685), of policy and critic."""

    rank: Positive
    alpha: Annotated[float, Field(gt=0.0)]
    """The adapters' product is multiplied by alpha / rank."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Last parts of the names of the layers to adapt, e.g. `["q_proj", "v_proj"]`; never the output head."""


class Model(Section):
    path: str
    """Folder or Hub id of a Hugging Face causal language model."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = False
    lora: Lora | None = None
    """Adapters to train; None trains every weight."""
    chat_template: str | None = None
    """Name of a shipped template (`tulu`), or None for the tokenizer's own."""


class Source(Section):
    path: str
    """JSONL or Parquet file, folder written by `datasets`, or Hub id."""
    subset: str | None = None
    """Of a Hub dataset that has several, e.g. `main` of openai/gsm8k."""
    split: str = "train"
    """Split of a Hub dataset; a local file is one split."""
    weight: Annotated[float, Field(gt=0.0)] | None = None
    """Share of the usable rows, written with a point: 0.5 takes half of them, 1.0 all, 2.5 each twice and half of
    them once more (rlvr/mixing.py says which)."""
    count: Positive | None = None
    """Number of rows instead of a share; more than there are repeats them as `weight` does."""
    remap: dict[str, str] = {}
    """Other verifier names for values of the `dataset` column, e.g. `{ifeval = "tulu3_ifeval"}`."""

    @pydantic.field_validator("weight", "count", mode="before")
    @classmethod
    def _share_or_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """1 and 1.0 mean different things, so neither is taken for the other."""
        if info.field_name == "weight" and type(value) is int:
            raise ValueError(f"a weight is a share and has a point: write weight={value}.0, or count={value} for rows")
        if info.field_name == "count" and isinstance(value, float):
            raise ValueError(
                f"a count is a whole number of rows: write count={value:.0f}, or weight={value} for a share"
            )
        return value

    @pydantic.model_validator(mode="after")
    def _one_of_them(self) -> Source:
        if self.weight is not None and self.count is not None:
            raise ValueError(f"weight={self.weight} and count={self.count} exclude each other: remove one")
        return self


def as_sources(value: Any) -> Any:
    """`"a.jsonl"` and `["a.jsonl", {path = "b.jsonl"}]` are short for a list of tables."""
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


Sources = Annotated[list[Source], pydantic.BeforeValidator(as_sources)]


class TextSource(Section):
    """A set whose texts are compared, in whatever layout it is published."""

    path: str
    """JSONL (`.gz` too), JSON array or Parquet file, folder written by `datasets`, or Hub id."""
    subset: str | None = None
    split: str = "train"
    columns: list[str] = []
    """Columns that are the prompt; without any, the user turns of `messages`, or the one column known to hold it."""


class Decontamination(Section):
    """Training rows that occur in evaluation sets. The defaults are the method of arXiv 2411.15124, section 3.2."""

    against: Annotated[list[TextSource], pydantic.BeforeValidator(as_sources)] = []
    """Evaluation sets, as rows or as they are published."""
    action: Literal["refuse", "remove rows", "remove set"] = "refuse"
    """`refuse` stops, and `remove set` leaves out the source, where it is contaminated; `remove rows` leaves out every
    row that an evaluation instance overlaps with, however few they are."""
    ngram: Positive = 8
    """Words in a row that must be the same."""
    min_overlap: Fraction = 0.5
    """An evaluation instance overlaps when more than this share of its words is matched by one training prompt."""
    max_contaminated: Fraction = 0.02
    """A source is contaminated when more than this share of an evaluation set's instances overlap."""


class RowOptions(Section):
    """How training rows are read, whatever the stage."""

    train: Sources
    max_bad_share: Fraction = 0.0
    """Bad rows of a source's rows that are left out, listed and counted; above it the run stops."""
    duplicates: Literal["bad", "keep"] = "keep"
    """Whether a row that repeats an earlier one of its source is a bad row, or is only counted and reported."""
    decontaminate: Decontamination = Decontamination()


class Data(RowOptions):
    eval: Sources = []
    """Held-out rows; reported by verifier."""
    max_prompt_tokens: Positive = 2048
    """Longer prompts are dropped, counted and reported, never cut."""


class Rollout(Section):
    prompts_per_step: Positive
    """Prompts of one step, over all ranks."""
    samples_per_prompt: Positive = 1
    max_tokens: Positive = 2048
    """Longest completion, in tokens. One that reaches it has no EOS."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """Before so many tokens no end token is sampled and no stop string ends a completion."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample from the likeliest tokens whose probabilities add up to this. Truncation (also `top_k`, `min_p`,
    `min_tokens`) makes the sampled distribution another than the policy that is trained: docs/rollouts.md."""
    top_k: Positive | None = None
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Leave out tokens less likely than this share of the likeliest one's probability."""
    stop_strings: list[Annotated[str, Field(min_length=1)]] = []
    """Text that ends a completion. It belongs to the completion, which counts as ended (`reward.no_eos_score`)."""
    drop_groups_without_signal: bool = False
    """Leave out groups whose known rewards are all equal, or fewer than two: a group's advantage is 0 there."""
    refill_rounds: Annotated[int, Field(ge=0)] = 0
    """Dynamic sampling: replace dropped groups by those of other prompts, in at most so many more rounds. A step that
    is still short trains on what there is."""

    @property
    def truncates(self) -> bool:
        """Whether tokens are sampled from less than the whole softmax."""
        return self.top_p < 1.0 or self.top_k is not None or self.min_p > 0.0 or self.min_tokens > 0


class Sampler(Section):
    """vLLM engine of each rank, or of `tensor_parallel_size` ranks."""

    tensor_parallel_size: Positive = 1
    """Consecutive ranks that hold one engine together, each a part of every weight and of the KV cache. Divides the
    number of ranks that sample."""
    kv_cache_mib: Positive | None = None
    """MiB of each rank for the KV cache; None takes 512 on a CPU and what `gpu_memory_utilization` leaves on a GPU."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of a GPU's memory that vLLM takes, weights included."""
    max_num_seqs: Positive = 256
    enforce_eager: bool = False
    prefix_caching: bool = True
    block_size: Positive | None = None
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """`auto` is the model's; `fp8` halves the cache, and the log-prob contract tells whether it is close enough."""
    statistics: bool = False
    """Log vLLM's own statistics: occupancy, KV cache, prefix-cache hits, preemptions, time to first token."""
    sleep: bool = True
    """On a GPU, free the sampler's weights and KV cache while the learner works."""


class Reward(Section):
    verification_reward: float = 10.0
    no_eos_score: float | Literal["keep"] = -10.0
    """Replaces the score of a completion without EOS (Tülu 3.1: 0.0); `keep` leaves the verifier's."""
    overlong_tokens: tuple[Positive, Positive] | None = None
    """DAPO's soft punishment (arXiv 2503.14476, Eq. 13; there [16384, 20480]): between these lengths the reward falls
    in a straight line, by `overlong_penalty` in all. None for none."""
    overlong_penalty: NonNegative = 10.0
    """In units of reward (DAPO: half of what lies between a right and a wrong answer)."""
    max_indeterminate_share: Fraction = 0.05
    """The run stops when more of one step's verdicts than this are indeterminate."""


class Verification(Section):
    workers: Positive = 1
    """Worker processes of each rank."""
    timeout_seconds: Annotated[float, Field(gt=0.0)] = 10.0
    memory_mib: Positive = 2048
    options: dict[str, dict[str, Any]] = {}
    """Options by verifier name. Those that a verifier has for training alone (`guard` of the IFEval family, on unless
    set here) do not reach evaluation."""
    remap: dict[str, str] = {}
    """Judge training rows of one verifier by another, e.g. a control with a random reward; evaluation does not."""


Advantage = Literal["gae", "grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"]


class Algorithm(Section):
    """The objective; docs/objectives.md compares the choices and says which papers' names they make."""

    advantage: Advantage = "gae"
    """`gae` needs a critic; all but `gae` and `reinforce_plus_plus` compare the samples of one prompt."""
    loss: Literal["ppo", "gspo", "cispo"] = "ppo"
    loss_aggregation: Literal["token", "sequence", "constant"] = "token"
    """A mean over tokens (Tülu 3, DAPO), over samples' means (GRPO, GSPO), or a sum over samples x
    rollout.max_tokens (Dr. GRPO). The critic's loss is always a mean over tokens."""
    gamma: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    whiten_advantages: bool | None = None
    """None: yes, but for advantages that are defined without (grpo, dr_grpo, rloo)."""
    kl_coefficient: NonNegative = 0.05
    """Beta. 0 leaves the reference model out."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_placement: Literal["reward", "loss"] = "reward"
    clip_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    clip_ratio_high: Annotated[float, Field(gt=0.0)] | None = None
    """Upper bound's distance from 1; None takes `clip_ratio` (DAPO: 0.28, Olmo 3: 0.272)."""
    dual_clip: Annotated[float, Field(gt=1.0)] | None = None
    """Bounds the ratio where the advantage is negative (arXiv 1912.09729: 3.0); None for no bound."""
    value_clip: Annotated[float, Field(gt=0.0)] = 0.2
    value_coefficient: NonNegative = 0.1
    epochs: Positive = 4
    minibatches: Positive = 1
    old_logprobs: Literal["learner", "sampler"] = "learner"
    """Denominator of the ratio: computed by the learner before the first epoch, or the sampler's own. The sampler's
    saves a forward pass, and gives up the comparison of the two on every rollout. With the learner's, `importance_cap`
    and `importance_mask` weight the loss by the ratio learner/sampler."""
    importance_cap: Annotated[float, Field(gt=0.0)] | None = None
    """Cap of the truncated importance weight learner/sampler (Olmo 3: 2.0); None for no cap."""
    importance_mask: tuple[NonNegative, NonNegative] | None = None
    """Where the ratio is outside of these bounds the weight is 0 (IcePop: [0.5, 5.0]); None for no mask."""
    importance_level: Literal["token", "sequence"] = "token"

    @property
    def whitened(self) -> bool:
        """Whether advantages are whitened."""
        if self.whiten_advantages is not None:
            return self.whiten_advantages
        return WHITENED[self.advantage] is not False

    @property
    def compares_groups(self) -> bool:
        """Whether a sample's advantage is relative to the other samples of its prompt."""
        return self.advantage not in ("gae", "reinforce_plus_plus")

    @property
    def corrects_importance(self) -> bool:
        """Whether the loss is weighted by the ratio learner/sampler."""
        return self.importance_cap is not None or self.importance_mask is not None


class Optimizer(Section):
    learning_rate: Annotated[float, Field(ge=0.0)] = 3e-7
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_ratio: Fraction = 0.0
    weight_decay: NonNegative = 0.01
    """torch's AdamW default, which Tülu 3's released learner left in place."""
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    max_gradient_norm: Annotated[float, Field(gt=0.0)] = 1.0


class Critic(Section):
    """Of `algorithm.advantage = "gae"`; the others have none."""

    init: str = "policy"
    """`policy`, `scratch`, or folder or Hub id of a reward model (a sequence classifier with one label)."""
    optimizer: Optimizer = Optimizer()


class Learner(Section):
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 replicates all, 1 splits optimizer state, 2 gradients too, 3 weights too."""
    offload_optimizer: bool = False
    """Keep optimizer state and float32 master weights in CPU memory, and update there (ZeRO 1 to 3)."""
    offload_parameters: bool = False
    """Keep this rank's part of the weights in CPU memory too (ZeRO 3)."""
    offload_reference: bool = False
    """Split the reference over the ranks as ZeRO 3 does, with this rank's part in CPU memory."""
    max_shard_mib: Positive = 4096
    """A saved model's safetensors files are at most so large; a larger weight gets a file of its own."""
    max_tokens_per_micro_batch: Positive = 8192
    """Real tokens of one packed row; samples are never cut, and there is no padding."""
    logits_chunk_tokens: Positive | None = None
    """The head is computed for so many tokens at a time, so that [T, V] is never held; None takes what makes 256 MiB of
    float32 logits."""


class Training(Section):
    steps: Positive
    evaluate_every: Positive | None = None
    """Evaluate every so many steps, beside before the first and after the last."""
    checkpoint_every: Positive | None = None
    keep_checkpoints: Positive = 2
    stall_timeout_seconds: Seconds = 1800.0
    """Longest time without any progress (a completion, a row, a weight) before the run stops and names the ranks that
    are behind."""


class Evaluation(Section):
    samples_per_prompt: Positive = 4
    """Samples at the rollout's temperature, for pass@1 (their mean) and pass@k, beside one greedy completion."""
    enabled: bool = True
    options: dict[str, dict[str, Any]] = {}
    """Options by verifier name, in place of those that training has, e.g. `{ifeval = {mode = "loose"}}`."""


class Proof(Section):
    """How closely the sampler must follow the learner. Tolerances are nats of log-probability per token."""

    tolerance: Annotated[float, Field(gt=0.0)] | None = None
    """Largest mean absolute difference; None takes 1e-4 for float32 and 0.05 for bfloat16."""
    canaries: Positive = 4
    """Sequences compared after each weight update."""


class Log(Section):
    samples_per_step: Annotated[int, Field(ge=0)] = 4
    """Groups of which the best and the worst completion are written to samples/."""
    tensorboard: bool = True


class Placement(Section):
    """Which of torchrun's ranks learn, and which sample."""

    mode: Literal["colocated", "disaggregated"] = "colocated"
    """`colocated`: every rank learns, and samples with an engine of its own. `disaggregated`: the first
    `learner_ranks` learn, the next `sampler_ranks` sample; weights travel by vLLM's weight-transfer API."""
    learner_ranks: Positive | None = None
    sampler_ranks: Positive | None = None
    share_gpus: bool = False
    """Sampler i samples on the GPU on which learner i learns, in a process of its own: the sampler takes
    `sampler.gpu_memory_utilization` of it when it starts, and the learner what it needs of the rest."""
    timeout_seconds: Seconds = 300.0
    """Longest silence of a sampling rank that has work, and longest part of a weight update, before the run stops."""
    start_timeout_seconds: Seconds = 900.0
    """Longest start-up of a sampling rank."""
    idle_timeout_seconds: Seconds = 3600.0
    """Longest wait of a sampling rank for its learners."""


class Asynchronous(Section):
    """Sampling goes on while the learner learns, and while weights arrive. Needs placement.mode='disaggregated'."""

    max_staleness: Annotated[int, Field(ge=0)]
    """Weight updates by which the weights that sampled a token may lag those that learn from it. So many steps are
    sampled ahead; 0 samples each step with the newest weights, as the synchronous loop does."""
    recompute_kv_cache: bool = False
    """After a weight update, compute the keys and values of unfinished samples again with the new weights."""


class Config(Section):
    """One run."""

    run_dir: str
    seed: int = 3
    plugins: list[str] = []
    """Python files that register verifiers."""
    model: Model
    data: Data
    rollout: Rollout
    sampler: Sampler = Sampler()
    reward: Reward = Reward()
    verification: Verification = Verification()
    algorithm: Algorithm = Algorithm()
    optimizer: Optimizer = Optimizer()
    critic: Critic = Critic()
    learner: Learner = Learner()
    training: Training
    evaluation: Evaluation = Evaluation()
    proof: Proof = Proof()
    log: Log = Log()
    placement: Placement = Placement()
    asynchronous: Asynchronous | None = None

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Config:
        refuse(contradictions(self))
        return self


def refuse(problems: list[str]) -> None:
    """Raise one pydantic error that holds every problem, for `rlvr.recipe` to list."""
    if problems:
        raise pydantic_core.PydanticCustomError("contradictions", "{problems}", {"problems": problems})
