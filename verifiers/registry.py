"""Names of verifiers, and the three ways to add one: a plugin file, an entry point, or `register` from Python.

Names are case-insensitive, because Tülu 3's data says `MATH` and `gsm8k`. Nothing is imported before it is asked
for: built-in verifiers and entry points are known by name only, so a broken plugin hurts only its own users.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from verifiers import plugins as plugin_files
from verifiers.base import Verifier
from verifiers.errors import DuplicateVerifierError, PluginError, UnknownVerifierError

if TYPE_CHECKING:
    from verifiers.listing import VerifierDescription

ENTRY_POINT_GROUP = "rlvr.verifiers"

BUILTIN: dict[str, str] = {
    "math": "verifiers.math_answer:MathVerifier",
    "gsm8k": "verifiers.math_answer:Gsm8kVerifier",
    "tulu3_math": "verifiers.tulu3_math:Tulu3Math",
    "tulu3_gsm8k": "verifiers.tulu3_math:Tulu3Gsm8k",
    "ifeval": "verifiers.ifeval:IFEvalVerifier",
    "tulu3_ifeval": "verifiers.ifeval.tulu3:Tulu3IFEvalVerifier",
    "ifbench": "verifiers.ifeval.ifbench:IFBenchVerifier",
    "code": "verifiers.code_tests:CodeVerifier",
    "code_stdio": "verifiers.code_tests:CodeStdioVerifier",
    "exact": "verifiers.exact:ExactVerifier",
    "regex": "verifiers.text_rules:RegexVerifier",
    "json_schema": "verifiers.text_rules:JsonSchemaVerifier",
    "length": "verifiers.text_rules:LengthVerifier",
    "combine": "verifiers.combine:CombineVerifier",
    "trl": "verifiers.trl_adapter:TrlVerifier",
}
"""Where each built-in verifier lives; its module is imported when the verifier is asked for."""

HOW_TO_ADD = (
    'To add one: put @register("name") on it in a file and list the file in plugins = [...] '
    '(on the command line: --plugin FILE), or give "file.py:Attr" as the name, '
    'or install a package with an entry point in group "rlvr.verifiers".'
)

_NAME = re.compile(r"[a-z0-9][a-z0-9_.\-]*")
_registered: dict[str, Registration] = {}
_Target = TypeVar("_Target", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VerifierSpec:
    """What a worker process needs to rebuild a verifier. Plain data: no verifier is ever pickled."""

    name: str
    """Registered name, or "file.py:Attr", or "package.module:Attr"."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values for the verifier's `Config`."""
    plugins: tuple[str, ...] = ()
    """Paths of plugin files to import first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One registered name."""

    verifier: type[Verifier]
    place: str
    """File and line of the registered class or function, for error messages and the listing."""


def register(name: str) -> Callable[[_Target], _Target]:
    """Register a `Verifier` subclass, or a function `(completion, ground_truth) -> bool | float | Verdict`.

    Returns the decorated object unchanged. Raises DuplicateVerifierError, naming both places, when the name is taken.

    >>> from verifiers.base import Sample
    >>> @register("doctest.shouts")
    ... def shouts(completion, ground_truth):
    ...     return completion == ground_truth.upper()
    >>> build(VerifierSpec(name="doctest.SHOUTS")).verify(Sample(completion="HI", ground_truth="hi")).outcome
    <Outcome.CORRECT: 'correct'>
    """
    key = _key(name)
    if not _NAME.fullmatch(key):
        raise PluginError(f"{name!r} cannot name a verifier: use letters, digits, '_', '-' and '.'.")

    def decorate(target: _Target) -> _Target:
        place = _place(target)
        _add(key, Registration(verifier=plugin_files.as_verifier(target, place=place), place=place))
        return target

    return decorate


def names() -> list[str]:
    """Every name that `resolve` knows: built in, installed as an entry point, or registered in this process."""
    return sorted({*BUILTIN, *_entry_points(), *_registered})


def resolve(name: str, plugins: Sequence[str] = ()) -> type[Verifier]:
    """The verifier class called `name`, importing what it needs and nothing else.

    Args:
        name: registered name in any case, or "file.py:Attr", or "package.module:Attr".
        plugins: paths of plugin files to import first.

    Raises UnknownVerifierError with the nearest name, PluginError where an import fails, DuplicateVerifierError where
    two places claim the name.
    """
    for file in plugins:
        load_plugin(file)
    if ":" in name:
        with _undone_on_error():
            return plugin_files.as_verifier(plugin_files.load_location(name), place=repr(name))
    key = _key(name)
    _refuse_two_claims(key)
    if key not in _registered:
        if key in BUILTIN:
            _add(key, _registration_at(BUILTIN[key]))
        elif entry_points := _entry_points().get(key):
            _add(key, _registration_at(entry_points[0].value.replace(" ", "")))
        else:
            raise UnknownVerifierError(_unknown(name))
    return _registered[key].verifier


def build(spec: VerifierSpec) -> Verifier:
    """A ready verifier. Raises as `resolve` does, and VerifierOptionError for options it does not have."""
    return resolve(spec.name, spec.plugins).from_options(spec.options)


def describe(plugins: Sequence[str] = ()) -> list[VerifierDescription]:
    """Every known verifier with its source, options and documentation; see `verifiers.listing`."""
    from verifiers import listing  # it imports this module

    return listing.describe(plugins)


def source_of(name: str) -> str:
    """Where a known name comes from, without importing it."""
    key = _key(name)
    if key in _registered and key not in BUILTIN:
        return _registered[key].place
    claims = [f"entry point {point.value} of {_distribution(point)}" for point in _entry_points().get(key, ())]
    return " and ".join(([BUILTIN[key]] if key in BUILTIN else []) + claims)


def load_plugin(file: str) -> list[str]:
    """Import a plugin file and return the names that it registers.

    Raises PluginError where the file fails to load (its registrations are then undone) or registers no verifier.
    """
    with _undone_on_error():
        module = plugin_files.load_file(file)
    found = [key for key, entry in _registered.items() if entry.verifier.__module__ == module.__name__]
    if not found:
        raise PluginError(f"plugin file {file!r} registers no verifier. {HOW_TO_ADD}")
    return found


@contextlib.contextmanager
def _undone_on_error() -> Iterator[None]:
    """Forget the names that a file registered before it failed."""
    before = dict(_registered)
    try:
        yield
    except (PluginError, DuplicateVerifierError):
        _registered.clear()
        _registered.update(before)
        raise


def _add(key: str, new: Registration) -> None:
    old = _registered.get(key)
    builtin_module = BUILTIN.get(key, "").partition(":")[0]
    new_module = new.verifier.__module__
    if builtin_module and builtin_module.split(".")[0] != new_module.split(".")[0]:
        raise DuplicateVerifierError(_duplicate(key, BUILTIN[key], new.place))
    # the same class or line again is a re-import (a notebook cell, a file that is also a module), which replaces
    if old is not None and _identity(old) != _identity(new) and old.place != new.place:
        raise DuplicateVerifierError(_duplicate(key, old.place, new.place))
    _registered[key] = new


def _identity(entry: Registration) -> tuple[str, str]:
    return entry.verifier.__module__, entry.verifier.__qualname__


def _refuse_two_claims(key: str) -> None:
    """Raise DuplicateVerifierError where an entry point claims a name that something else has."""
    claims = [f"entry point {point.value} of {_distribution(point)}" for point in _entry_points().get(key, ())]
    if claims and key in BUILTIN:
        claims.insert(0, BUILTIN[key])
    elif claims and key in _registered:
        entry = _registered[key]
        module = _entry_points()[key][0].value.partition(":")[0]
        if entry.verifier.__module__.split(".")[0] != module.split(".")[0]:
            claims.insert(0, entry.place)
    if len(claims) > 1:
        raise DuplicateVerifierError(_duplicate(key, *claims))


def _duplicate(key: str, *places: str) -> str:
    return (
        f"verifier name {key!r} is claimed by {' and by '.join(places)}. Rename one, or remove the one you do not want."
    )


@functools.cache
def _entry_points() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """Installed entry points by name; reading them imports nothing."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        found.setdefault(_key(point.name), []).append(point)
    return found


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unnamed distribution"


def _registration_at(location: str) -> Registration:
    target = plugin_files.load_location(location)
    return Registration(verifier=plugin_files.as_verifier(target, place=location), place=location)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(_key(name), names(), n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    if name.endswith(".py"):
        hint = f"A file needs the name of what is in it, as in '{name}:MyVerifier'. "
    return f"no verifier is called {name!r}. {hint}Known: {', '.join(names())}. {HOW_TO_ADD}"


def _key(name: str) -> str:
    return name.strip().casefold()


def _place(target: Any) -> str:
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):  # a console or a C function has no source file
        return f"{getattr(target, '__module__', 'unknown module')}:{getattr(target, '__qualname__', repr(target))}"
