"""Load verifiers from plugin files, and turn plain functions into verifiers.

A plugin file is trusted code of the user's own. Loading one runs it once per process; a file that fails to load
leaves nothing behind.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import pathlib
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

from verifiers.base import Sample, Verdict, Verifier
from verifiers.errors import DuplicateVerifierError, PluginError

PLUGIN_MODULE_PREFIX = "rlvr_plugin_"

_adapted_functions: dict[Callable[..., Any], type[Verifier]] = {}


class FunctionVerifier(Verifier):
    """A plain function `(completion, ground_truth) -> bool | float | Verdict` as a verifier."""

    function: ClassVar[Callable[[str, Any], Any]]

    def verify(self, sample: Sample) -> Verdict:
        return verdict_of(type(self).function(sample.completion, sample.ground_truth))


def verdict_of(value: Any) -> Verdict:
    """The verdict that a function's return value stands for.

    `True` and `1.0` are correct, a number in [0, 1) is wrong with that much credit; a `Verdict` is itself. Anything
    else (`None` from a forgotten `return`, NaN, 2.0) is a fault of the verifier, so indeterminate.

    >>> verdict_of(True).outcome, verdict_of(0.25).score
    (<Outcome.CORRECT: 'correct'>, 0.25)
    >>> verdict_of(None).outcome
    <Outcome.INDETERMINATE: 'indeterminate'>
    """
    if isinstance(value, Verdict):
        return value
    if isinstance(value, bool | int | float) and 0.0 <= value <= 1.0:
        return Verdict.from_score(float(value))
    return Verdict.indeterminate(
        f"the verifier returned {value!r:.80}; it must return a bool, a number in [0, 1] or a Verdict"
    )


def as_verifier(target: Any, *, place: str) -> type[Verifier]:
    """The verifier class behind `target`: itself, or the adapter of a plain function (one per function).

    Raises PluginError for anything else; `place` says where it was found.
    """
    if isinstance(target, type) and issubclass(target, Verifier):
        if target.verify is Verifier.verify or inspect.iscoroutinefunction(target.verify):
            fault = "no method verify(self, sample)" if target.verify is Verifier.verify else "a coroutine as verify"
            raise PluginError(f"{place} has {fault}. Write a plain method that takes a Sample and returns a Verdict.")
        return target
    if not inspect.isroutine(target):
        raise PluginError(
            f"{place} is not a verifier: it must be a subclass of verifiers.base.Verifier or a function "
            f"(completion, ground_truth); got {target!r:.120}."
        )
    if target not in _adapted_functions:
        _check_signature(target, place)
        attributes = {
            "function": staticmethod(target),
            "__doc__": target.__doc__,
            "__module__": target.__module__,
            "__qualname__": target.__qualname__,
        }
        _adapted_functions[target] = type(target.__name__, (FunctionVerifier,), attributes)
    return _adapted_functions[target]


def _check_signature(function: Callable[..., Any], place: str) -> None:
    if inspect.iscoroutinefunction(function):
        raise PluginError(
            f"{place} is a coroutine function; a verifier is a plain function. Call asyncio.run inside it."
        )
    try:
        inspect.signature(function).bind("completion", "ground truth")
    except TypeError as error:
        raise PluginError(
            f"{place} cannot be called as f(completion, ground_truth): {error}. "
            "A verifier function takes exactly these two; for more of the row, write a Verifier class."
        ) from error
    except ValueError:
        return  # a C function without a readable signature: the first call tells


def module_name_of(path: pathlib.Path) -> str:
    """The name in `sys.modules` of a plugin file: unique per file, so that two files may share a stem."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    return f"{PLUGIN_MODULE_PREFIX}{path.stem}_{digest}"


def load_file(file: str) -> ModuleType:
    """Import a plugin file once per process.

    Raises PluginError where the file is missing or fails, with the line of the file that failed.
    """
    path = pathlib.Path(file).expanduser().resolve()
    name = module_name_of(path)
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise PluginError(
            f"plugin file {file!r} does not exist (looked at {path}). "
            "Correct the path; it is relative to the working directory."
        )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin file {file!r} is not a Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        # a user's file may raise anything, and a script without a main guard calls sys.exit
        if isinstance(error, DuplicateVerifierError) or not isinstance(error, Exception | SystemExit):
            raise
        raise PluginError(f"plugin file {file!r} failed to load: {_where(error, path)}. Fix the file.") from error
    return module


def _where(error: BaseException, path: pathlib.Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    at = f" at line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}: {error}{at}"


def load_location(location: str) -> Any:
    """The object at "file.py:Attr" or "package.module:Attr"; raises PluginError naming the part that is missing."""
    where, _, attribute = location.rpartition(":")
    if not where or not attribute:
        raise PluginError(f"{location!r} is not a location: write 'file.py:Attr' or 'package.module:Attr'.")
    module = load_file(where) if where.endswith(".py") else _import_module(where, location)
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        public = ", ".join(name for name, value in vars(module).items() if _could_verify(value, module)) or "none"
        raise PluginError(
            f"{where!r} has no {attribute!r}. Functions and verifiers defined there: {public}."
        ) from error


def _could_verify(value: Any, module: ModuleType) -> bool:
    is_candidate = inspect.isfunction(value) or (isinstance(value, type) and issubclass(value, Verifier))
    return is_candidate and value.__module__ == module.__name__


def _import_module(module: str, location: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # importing somebody's module may raise anything; the cause is kept
        raise PluginError(
            f"cannot import {module!r} of verifier {location!r}: {type(error).__name__}: {error}. "
            "Install the package, or fix the module."
        ) from error


def locate(target: type[Verifier]) -> str:
    """Where a fresh process finds this verifier: "/path/file.py:Attr" or "package.module:Attr".

    Raises PluginError where none could: defined in the running script, in a notebook, or inside a function.
    """
    module_name, qualified_name = target.__module__, target.__qualname__
    module = sys.modules.get(module_name)
    if module_name == "__main__" or "<locals>" in qualified_name:
        place = "the running script" if module_name == "__main__" else "a function"
        raise PluginError(
            f"verifier {qualified_name!r} is defined in {place}, where worker processes cannot import it. "
            "Move it to the top level of its own file and name that file in plugins = [...]."
        )
    if module_name.startswith(PLUGIN_MODULE_PREFIX) and module is not None:
        return f"{module.__file__}:{qualified_name}"
    return f"{module_name}:{qualified_name}"
