"""Names of verifiers: built in, from plugin files, from entry points, from Python."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from verifiers import registry
from verifiers.base import Outcome, Sample, Verdict, Verifier
from verifiers.errors import DuplicateVerifierError, PluginError, UnknownVerifierError, VerifierOptionError
from verifiers.registry import VerifierSpec, build, register, resolve


@pytest.fixture(autouse=True)
def clean_registry() -> Iterator[None]:
    """Each test registers for itself; entry points are read anew."""
    before = dict(registry._registered)
    registry._entry_points.cache_clear()
    yield
    registry._registered.clear()
    registry._registered.update(before)
    registry._entry_points.cache_clear()


def verdict_of(name: str, completion: str, ground_truth: object, **fields: object) -> Verdict:
    spec = VerifierSpec(name=name, **fields)  # type: ignore[arg-type]
    return build(spec).verify(Sample(completion=completion, ground_truth=ground_truth))


def write(folder: pathlib.Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_names_are_case_insensitive() -> None:
    assert resolve("EXACT") is resolve(" exact ") is resolve("Exact")


def test_a_function_may_return_a_bool_a_number_or_a_verdict() -> None:
    answers = {"yes": True, "no": False, "half": 0.5, "one": 1, "why": Verdict.wrong("because"), "nan": float("nan")}
    register("mapped")(lambda completion, ground_truth: answers.get(completion, "text"))
    outcomes = {key: verdict_of("mapped", key, None) for key in [*answers, "other"]}
    assert [(v.outcome.value, v.score) for v in outcomes.values()] == [
        ("correct", 1.0),
        ("wrong", 0.0),
        ("wrong", 0.5),
        ("correct", 1.0),
        ("wrong", 0.0),
        ("indeterminate", 0.0),
        ("indeterminate", 0.0),
    ]
    assert outcomes["why"].detail == "because"


def test_a_duplicate_name_is_refused_with_both_places(tmp_path: pathlib.Path) -> None:
    text = (
        'from verifiers import register\n\n@register("same")\ndef verify(completion, ground_truth):\n    return True\n'
    )
    first, second = write(tmp_path, "first.py", text), write(tmp_path, "second.py", text)
    resolve("same", [first])
    with pytest.raises(DuplicateVerifierError) as caught:
        resolve("same", [second])
    assert f"{first}:3" in str(caught.value)
    assert f"{second}:3" in str(caught.value)
    # the file that failed left nothing behind, so the first still works
    assert verdict_of("same", "x", None).outcome is Outcome.CORRECT


def test_a_built_in_name_cannot_be_taken_even_before_it_is_imported() -> None:
    with pytest.raises(DuplicateVerifierError, match=r"verifiers\.text_rules:LengthVerifier.*test_registry\.py"):
        register("Length")(lambda completion, ground_truth: True)


def test_registering_the_same_class_again_replaces_it() -> None:
    def define() -> type[Verifier]:
        @register("again")
        class Again(Verifier):
            """Twice the same place."""

            def verify(self, sample: Sample) -> Verdict:
                return Verdict.wrong(sample.completion)

        return Again

    first, second = define(), define()
    assert resolve("again") is second is not first


def test_a_file_may_be_a_plugin_and_an_imported_module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from verifiers import register\n@register('both.ways')\ndef verify(c, g): return True\n"
    file = write(tmp_path, "both_ways_module.py", text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert verdict_of("both_ways_module:verify", "x", None).outcome is Outcome.CORRECT
    assert registry.load_plugin(file) == ["both.ways"]
    assert verdict_of("both.ways", "x", None).outcome is Outcome.CORRECT


def test_an_unknown_name_gives_the_nearest_and_says_how_to_add_one() -> None:
    with pytest.raises(UnknownVerifierError) as caught:
        resolve("gsm8")
    assert "Did you mean 'gsm8k'?" in str(caught.value)
    assert "plugins = [...]" in str(caught.value)
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("name", ["", "two words", "a:b", "../x"])
def test_a_name_that_could_not_be_asked_for_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match="cannot name a verifier"):
        register(name)


def test_options_are_checked_when_the_verifier_is_built() -> None:
    with pytest.raises(VerifierOptionError, match=r"modee: Extra inputs.*Its options are: mode, take"):
        build(VerifierSpec(name="exact", options={"modee": "choice"}))
    with pytest.raises(VerifierOptionError, match=r"must be JSON values.*got \{'mode'"):
        build(VerifierSpec(name="exact", options={"mode": {1}}))


def test_a_plugin_file_gives_its_names_or_one_attribute(tmp_path: pathlib.Path) -> None:
    text = (
        "from verifiers import Verifier, Verdict, register\n"
        '@register("Shout")\n'
        "def shout(completion, ground_truth):\n    return completion == ground_truth.upper()\n"
        "class Silent(Verifier):\n"
        "    def verify(self, sample):\n        return Verdict.correct('quiet')\n"
    )
    file = write(tmp_path, "mine.py", text)
    assert registry.load_plugin(file) == ["shout"]
    assert verdict_of("SHOUT", "HI", "hi").outcome is Outcome.CORRECT
    assert verdict_of(f"{file}:Silent", "x", None).detail == "quiet"
    assert verdict_of(f"{file}:shout", "hi", "hi").outcome is Outcome.WRONG
    assert "shout" in registry.names()


def test_files_with_one_stem_are_two_plugins(tmp_path: pathlib.Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(
            tmp_path / folder,
            "mine.py",
            f"def verify(completion, ground_truth):\n    return completion == {folder!r}\n",
        )
    assert verdict_of(f"{tmp_path}/a/mine.py:verify", "a", None).outcome is Outcome.CORRECT
    assert verdict_of(f"{tmp_path}/b/mine.py:verify", "a", None).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nraise ValueError('boom')\n", "ValueError: boom at line 2"),
        ("import sys\nsys.exit(1)\n", "SystemExit: 1 at line 2"),
        ("import no_such_module_here\n", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("def broken(:\n", "SyntaxError"),
        ("x = 1\n", "registers no verifier"),
        ("from verifiers import register\n@register('n')\ndef f(completion): return True\n", "takes exactly these two"),
        ("from verifiers import register\n@register('n')\nasync def f(c, g): return True\n", "coroutine function"),
        ("from verifiers import register\nregister('n')(3)\n", "is not a verifier"),
        ("from verifiers import *\n@register('n')\nclass X(Verifier): pass\n", "has no method verify"),
        (
            "from verifiers import *\n@register('n')\nclass X(Verifier):\n async def verify(self, sample): pass\n",
            "a coroutine",
        ),
    ],
)
def test_a_plugin_file_that_fails_says_where_and_leaves_nothing_behind(
    tmp_path: pathlib.Path, text: str, message: str
) -> None:
    start = "from verifiers import register\n@register('early')\ndef early(c, g): return True\n"
    file = write(tmp_path, "broken.py", text)
    with pytest.raises(PluginError, match=message):
        registry.load_plugin(file)
    if "registers no" not in message:
        half = write(tmp_path, "half.py", start + text)
        with pytest.raises(PluginError):
            registry.load_plugin(half)
        assert "early" not in registry.names()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.py:X", "does not exist"),
        ("no_such_package:X", "cannot import 'no_such_package'"),
        ("verifiers.exact:Missing", "Functions and verifiers defined there: .*ExactVerifier"),
        ("verifiers.exact:re", "is not a verifier"),
        ("verifiers.exact:", "is not a location"),
    ],
)
def test_a_location_that_is_not_there_names_the_missing_part(name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        resolve(name)


@pytest.fixture
def installed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder of installed distributions: one good, one broken, two that claim one name, one that claims `math`."""

    def install(distribution: str, name: str, module: str, text: str) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[rlvr.verifiers]\n{name} = {module}:verify\n")
        write(tmp_path, f"{module}.py", text)

    good = "def verify(completion, ground_truth):\n    return completion == 'from the entry point'\n"
    install("good-plugin", "Entry", "good_plugin_module", good)
    install("broken-plugin", "broken", "broken_plugin_module", "raise RuntimeError('broken on import')\n")
    install("twin-one", "twin", "twin_one_module", good)
    install("twin-two", "twin", "twin_two_module", good)
    install("taker", "math", "taker_module", good)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._entry_points.cache_clear()
    return tmp_path


def test_entry_points_are_read_by_name_and_imported_on_demand(installed: pathlib.Path) -> None:
    assert {"entry", "broken", "twin"} <= set(registry.names())
    assert "good_plugin_module" not in sys.modules
    assert verdict_of("ENTRY", "from the entry point", None).outcome is Outcome.CORRECT
    assert "broken_plugin_module" not in sys.modules


def test_a_broken_entry_point_hurts_only_its_users(installed: pathlib.Path) -> None:
    with pytest.raises(PluginError, match="RuntimeError: broken on import"):
        resolve("broken")
    assert verdict_of("exact", "a", "a").outcome is Outcome.CORRECT
    listed = {entry.name: entry for entry in registry.describe()}
    assert "broken on import" in listed["broken"].error
    assert listed["exact"].error == ""


def test_entry_points_that_claim_one_name_are_refused_to_its_users_only(installed: pathlib.Path) -> None:
    with pytest.raises(DuplicateVerifierError, match=r"twin_one_module.*twin-one.*twin_two_module.*twin-two"):
        resolve("twin")
    with pytest.raises(DuplicateVerifierError, match=r"verifiers\.math_answer:MathVerifier and by .*taker"):
        resolve("math")
    assert verdict_of("entry", "x", None).outcome is Outcome.WRONG


def test_every_built_in_verifier_can_be_imported_and_is_registered_under_its_name() -> None:
    for name, location in registry.BUILTIN.items():
        verifier = resolve(name)
        assert issubclass(verifier, Verifier), location
        assert verifier.__doc__, f"{name} has no documentation"


def test_importing_the_package_imports_no_mathematics_and_no_torch(repository: pathlib.Path) -> None:
    heavy = {"sympy", "torch", "nltk", "math_verify", "jsonschema"}
    code = f"import sys, verifiers; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_the_entry_point_group_is_the_documented_one() -> None:
    assert registry.ENTRY_POINT_GROUP == "rlvr.verifiers"
    assert all(point.group == "rlvr.verifiers" for points in registry._entry_points().values() for point in points)
    assert isinstance(importlib.metadata.entry_points(group="rlvr.verifiers"), importlib.metadata.EntryPoints)
