"""Reading recipes: every mistake at once, each with the nearest valid name; every override reaches the config."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest

from rlvr import recipe
from rlvr.config import Config
from rlvr.errors import ConfigError
from sft_dpo import config as stages

RECIPES = pathlib.Path(__file__).resolve().parents[1] / "launch" / "recipes"
LEAST = """
run_dir = "runs/x"
[model]
path = "owner/name"
dtype = "float32"
[data]
train = "rows.jsonl"
[rollout]
prompts_per_step = 4
[training]
steps = 2
"""


@pytest.fixture
def least(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("r.toml").write_text(LEAST)
    return "r.toml"


def message(path: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe.load(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.name)
def test_every_shipped_recipe_is_valid(file: pathlib.Path) -> None:
    stage = recipe.read_toml(file).get("stage")
    schema: Any = Config if stage is None else getattr(stages, stage.capitalize())
    assert isinstance(recipe.load_as(schema, file), schema)


def test_the_tulu_3_recipe_differs_from_the_defaults_only_where_the_8b_run_needs_it() -> None:
    made = recipe.load(RECIPES / "tulu3-8b.toml")
    for section in ("reward", "algorithm", "optimizer"):
        schema: Any = Config.model_fields[section].annotation
        found = getattr(made, section)
        if section == "algorithm":  # which is whitened by default
            assert found.whiten_advantages is True
            found = found.model_copy(update={"whiten_advantages": None})
        assert found == schema(), section
    assert made.critic.optimizer == made.optimizer
    assert (made.rollout.prompts_per_step, made.training.steps) == (224, 446)
    assert made.rollout.prompts_per_step * made.training.steps == 99_904  # of 100,000 episodes: 446.4 steps
    assert made.data.train[0].remap == {"ifeval": "tulu3_ifeval"}


def test_an_unknown_key_names_the_nearest_one(least: str) -> None:
    assert message(least, "rollout.temprature=0.7") == (
        "r.toml: 1 mistake in the recipe\n"
        "  rollout.temprature: no such option (value 0.7). Did you mean rollout.temperature?"
    )


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("learning_rate=0.1", "Did you mean optimizer.learning_rate or critic.optimizer.learning_rate?"),
        ("rolout.temperature=0.1", "Did you mean the section [rollout]?"),
        ("data.train.0.pth=b.jsonl", "Did you mean data.train.0.path?"),
        ("training.learning_rate=0.1", "Did you mean optimizer.learning_rate or critic.optimizer.learning_rate?"),
        ("zzzz=1", "Valid here: run_dir, seed, plugins."),
    ],
)
def test_the_hint_finds_a_key_in_another_section_or_a_list(least: str, override: str, hint: str) -> None:
    assert message(least, override).endswith(hint)


def test_a_wrong_type_shows_the_value_seen(least: str) -> None:
    assert message(least, "rollout.temperature=warm") == (
        "r.toml: 1 mistake in the recipe\n  rollout.temperature: Input should be a valid number (got 'warm')"
    )


def test_a_value_outside_a_closed_set_lists_the_set(least: str) -> None:
    assert message(least, "algorithm.kl_estimator=k9") == (
        "r.toml: 1 mistake in the recipe\n  algorithm.kl_estimator: Input should be 'k1', 'k2' or 'k3' (got 'k9')"
    )


def test_an_impossible_combination_is_one_mistake_each(least: str) -> None:
    assert message(least, "algorithm.minibatches=5", "training.evaluate_every=3") == (
        "r.toml: 2 mistakes in the recipe\n"
        "  algorithm.minibatches=5 is more than the 4 samples of a step (rollout.prompts_per_step x "
        "rollout.samples_per_prompt): lower it\n"
        "  training.evaluate_every=3 does nothing without data.eval: remove one"
    )


def test_several_mistakes_are_told_at_once(least: str) -> None:
    text = message(least, "seed=x", "rollout.temprature=3", "training.steps=0")
    assert text == (
        "r.toml: 3 mistakes in the recipe\n"
        "  seed: Input should be a valid integer (got 'x')\n"
        "  rollout.temprature: no such option (value 3). Did you mean rollout.temperature?\n"
        "  training.steps: Input should be greater than 0 (got 0)"
    )


def test_missing_options_and_sections_say_how_to_give_them(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "short.toml"
    file.write_text('run_dir = "x"\n[model]\n[rollout]\nprompts_per_step = 1\n[training]\nsteps = 1\n')
    assert message(str(file)) == (
        f"{file}: 2 mistakes in the recipe\n"
        "  model.path: missing, and it has no default. Add it to the recipe, or give model.path=... on the "
        "command line.\n"
        "  the section [data] is missing, and it has no default. Add it to the recipe, or give data.train=... on the "
        "command line."
    )


def test_a_missing_recipe_names_the_nearest_file(least: str) -> None:
    assert message("rr.toml") == "there is no recipe rr.toml. Did you mean r.toml?"
    assert message("far/away.toml") == "there is no recipe far/away.toml."


def test_a_folder_is_no_recipe(least: str) -> None:
    pathlib.Path("folder").mkdir()
    assert message("folder") == "folder is a folder; give the path of a .toml recipe in it."


def test_what_is_not_toml_is_told_with_its_line(least: str) -> None:
    pathlib.Path("bad.toml").write_text("seed = \n")
    assert message("bad.toml") == "bad.toml is not valid TOML: Invalid value (at line 1, column 8). Correct it there."
    pathlib.Path("latin.toml").write_bytes(b'run_dir = "\xe9"\n')
    assert message("latin.toml").startswith("latin.toml is not valid TOML: 'utf-8' codec can't decode byte 0xe9")


def test_a_recipe_extends_another_table_by_table(least: str) -> None:
    pathlib.Path("deep").mkdir()
    pathlib.Path("deep/mine.toml").write_text('extends = "../r.toml"\nseed = 5\n[rollout]\ntemperature = 0.5\n')
    made = recipe.load("deep/mine.toml", ["seed=6"])
    assert (made.seed, made.rollout.temperature, made.rollout.prompts_per_step) == (6, 0.5, 4)


def test_a_recipe_may_leave_out_options_of_the_one_it_extends(least: str) -> None:
    pathlib.Path("r.toml").write_text(LEAST + "[critic]\ninit = 'scratch'\n")
    grouped = 'extends = "r.toml"\nwithout = ["critic"]\n[rollout]\nsamples_per_prompt = 2\n'
    pathlib.Path("mine.toml").write_text(grouped + '[algorithm]\nadvantage = "grpo"\n')
    made = recipe.load("mine.toml")
    assert (made.algorithm.advantage, made.critic) == ("grpo", Config.model_fields["critic"].default)
    pathlib.Path("mine.toml").write_text('extends = "r.toml"\nwithout = ["critic.start"]\n')
    assert message("mine.toml") == (
        "mine.toml: without=['critic.start']: r.toml has no critic.start. Remove it from `without`."
    )
    pathlib.Path("mine.toml").write_text('without = ["critic"]\n')
    assert (
        message("mine.toml") == "mine.toml: without=['critic'] has no recipe to leave anything out of: set extends too."
    )


@pytest.mark.parametrize(
    ("name", "samples", "steps", "beta", "rate"),
    [
        ("tulu3-70b", 640, 625, 0.07, 1e-7),
        ("tulu3-405b", 1856, 161, 0.05, 1e-7),
        ("tulu3.1-8b", 768, 1920, 0.01, 5e-7),
        ("olmo3-7b", 512, 1400, 0.0, 1e-6),
    ],
)
def test_published_recipes_have_the_published_batch_length_and_rate(
    name: str, samples: int, steps: int, beta: float, rate: float
) -> None:
    made = recipe.load(RECIPES / f"{name}.toml")
    assert made.rollout.prompts_per_step * made.rollout.samples_per_prompt == samples
    assert (made.training.steps, made.algorithm.kl_coefficient, made.optimizer.learning_rate) == (steps, beta, rate)
    assert (made.algorithm.advantage == "gae") == name.startswith("tulu3-")


def sources(name: str) -> set[str]:
    """The keys of the sources that a recipe's head lists, and those of the recipe that it extends."""
    text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^#   (\S+) {2,}\S", text, flags=re.MULTILINE))
    extended = re.search(r'^extends = "(.*)\.toml"', text, flags=re.MULTILINE)
    return listed | (sources(extended[1]) if extended else set())


@pytest.mark.parametrize("name", ["tulu3-8b", "tulu3-70b", "tulu3-405b", "tulu3.1-8b", "olmo3-7b"])
def test_every_value_of_a_published_recipe_names_its_source(name: str) -> None:
    lines = (RECIPES / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    keys = sources(name) | {"section", "neither source", "4.4", "6.4"}
    assert len(keys) > 5
    for number, line in enumerate(lines):
        if not re.match(r"[a-z0-9_]+ = ", line) or line.startswith(("run_dir", "extends")):
            continue
        begin = number
        while lines[begin - 1].startswith("#"):
            begin -= 1
        comment = " ".join([*lines[begin:number], line.partition(" # ")[2]])
        assert any(key in comment for key in keys), line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        # facts of two sources each, of which the recipe takes one and names the other
        ("tulu3-8b", ["10,000,000", "3-shot"]),
        ("tulu3-70b", ["0.7,", "0.07", "100,000"]),
        ("tulu3-405b", ["232", "240", "card 2,048", "400,000", "say 4"]),
        ("tulu3.1-8b", ["7 x 2"]),
        ("olmo3-7b", ["T49 has none", "async_steps 8"]),
    ],
)
def test_where_sources_disagree_a_published_recipe_names_both(name: str, said: list[str]) -> None:
    comments = " ".join(re.findall(r"#(.*)", (RECIPES / f"{name}.toml").read_text(encoding="utf-8")))
    assert comments.count("CONFLICT") >= max(len(said) - 2, 1)
    assert all(words in comments for words in said)


def test_recipes_that_extend_each_other_are_refused(least: str, tmp_path: pathlib.Path) -> None:
    pathlib.Path("a.toml").write_text('extends = "b.toml"\n')
    pathlib.Path("b.toml").write_text('extends = "a.toml"\n')
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    assert message("a.toml") == f"recipes extend each other in a circle: {a} -> {b} -> {a}. Remove one `extends`."


def test_a_base_that_is_missing_names_who_wants_it(least: str, tmp_path: pathlib.Path) -> None:
    pathlib.Path("mine.toml").write_text('extends = "q.toml"\n')
    assert message("mine.toml").startswith(f"there is no recipe q.toml (`extends` of {tmp_path / 'mine.toml'}).")
    pathlib.Path("mine.toml").write_text("extends = 3\n")
    assert message("mine.toml") == "mine.toml: extends must be the path of a recipe, relative to this one; got 3"


@pytest.mark.parametrize(
    ("overrides", "seen"),
    [
        (["rollout.temperature=0.7"], lambda c: c.rollout.temperature == 0.7),
        (["rollout.temperature=1"], lambda c: c.rollout.temperature == 1.0),
        (["optimizer.learning_rate=1e-6"], lambda c: c.optimizer.learning_rate == 1e-6),
        (["critic.optimizer.learning_rate=1e-6"], lambda c: c.critic.optimizer.learning_rate == 1e-6),
        (["sampler.enforce_eager=true"], lambda c: c.sampler.enforce_eager is True),
        (["model.path=Qwen/Qwen2.5-0.5B"], lambda c: c.model.path == "Qwen/Qwen2.5-0.5B"),
        (['model.path="./a=b"'], lambda c: c.model.path == "./a=b"),
        (["model.path=a=b"], lambda c: c.model.path == "a=b"),
        (["reward.no_eos_score=keep"], lambda c: c.reward.no_eos_score == "keep"),
        (['plugins=["a.py", "b.py"]'], lambda c: c.plugins == ["a.py", "b.py"]),
        (["data.train=file.jsonl"], lambda c: [s.path for s in c.data.train] == ["file.jsonl"]),
        (['data.train=["a.jsonl", "b.jsonl"]'], lambda c: [s.path for s in c.data.train] == ["a.jsonl", "b.jsonl"]),
        (['data.train=[{path="a.jsonl", count=3}]'], lambda c: c.data.train[0].count == 3),
        (["data.train.0.path=b.jsonl"], lambda c: c.data.train[0].path == "b.jsonl"),
        (["data.train.0=b.jsonl"], lambda c: c.data.train[0].path == "b.jsonl"),
        (["data.train.0.count=7"], lambda c: (c.data.train[0].path, c.data.train[0].count) == ("rows.jsonl", 7)),
        (["data.train.0.remap.math=gsm8k"], lambda c: c.data.train[0].remap == {"math": "gsm8k"}),
        (['data.train=["a.jsonl", "b.jsonl"]', "data.train.1.count=2"], lambda c: c.data.train[1].count == 2),
        (["verification.options.math.x=3"], lambda c: c.verification.options == {"math": {"x": 3}}),
        (["seed=4", "seed=5"], lambda c: c.seed == 5),
    ],
)
def test_an_override_reaches_the_config_in_every_spelling(least: str, overrides: list[str], seen: Any) -> None:
    assert seen(recipe.load(least, overrides))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("seed", "an override is spelt section.option=value; got 'seed'"),
        ("=3", "an override is spelt section.option=value; got '=3'"),
        ("rollout..x=3", "an override is spelt section.option=value; got 'rollout..x=3'"),
        ("data.train.1.path=b", "'data.train.1.path=b': data.train has no entry '1'; the last one is 0"),
        (
            "model.path.x=b",
            "'model.path.x=b': model.path is 'owner/name', which has no options inside; set model.path=... itself",
        ),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(least: str, override: str, text: str) -> None:
    assert message(least, override) == text


def test_every_option_of_the_schema_can_be_overridden_by_its_listed_name(least: str) -> None:
    listed = [name for name, _ in recipe.options(Config)]
    assert {"critic.optimizer.beta1", "data.train", "data.train.N.remap", "run_dir"} <= set(listed)
    for name in listed:
        if ".N." in name:
            continue
        assert f"\n  {name}" in message(least, f"{name}=[[1]]")  # which no option takes
