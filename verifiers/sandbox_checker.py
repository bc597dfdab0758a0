"""Tests that run in a process of their own and reach the untrusted program through messages.

For tests that cannot be split into calls and literals by reading them (loops, tolerances over random inputs, objects
with methods). Every name that the tests take from the program is a `Remote` here: calling it sends the arguments to the
program's process and returns plain values. Expected values stay on this side. An object that is not plain data is a
`Remote` too: its methods can be called, but it equals no value, so an `__eq__` that always agrees is never asked.
Standard library only: the zygote imports this file without the rest of the package.
"""

from __future__ import annotations

import ast
import builtins
import functools
from typing import Any

from verifiers.sandbox_child import BUILTIN_EXCEPTIONS, Channel, describe, load_module
from verifiers.sandbox_values import Encoder, Opaque, Stream, decode


class NotSeparable(BaseException):
    """The tests hand the program something that cannot be sent, a function for example."""


class ProgramGone(BaseException):
    """The program's process ended, or was ended, during a call: no test after that can hold."""


class ProgramError(Exception):
    """The program raised an exception of its own making."""


# StopIteration from a function that the tests hand to `map` would end their loop early, and make all(map(...)) true
_RAISED_HERE = {name: kind for name, kind in BUILTIN_EXCEPTIONS.items() if not name.startswith("Stop")}


class _Link:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def ask(
        self,
        remote: Remote,
        operation: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        *,
        in_place: bool = False,
    ) -> Any:
        """The program's answer. With `in_place`, what it did to the arguments is done to them here."""
        request = {
            "in_place": in_place,
            "operation": operation,
            "name": remote._name,
            "handle": remote._handle,
            "arguments": [Encoder(_handle_of).encode(value) for value in arguments],
            "keywords": {name: Encoder(_handle_of).encode(value) for name, value in keywords.items()},
        }
        self._channel.send({"ask": request})
        answer = self._channel.receive()
        if "gone" in answer:
            raise ProgramGone(answer["gone"])
        if "raised" in answer:
            _kind, name, message = answer["raised"]
            raise _RAISED_HERE.get(name, ProgramError)(message)
        for before, after in zip(arguments, answer.get("arguments", ()), strict=False):
            _become(before, self._wrap(decode(after), remote._name))
        made_by_tests = operation == "call" and remote._handle is None and remote._name[:1].isupper()
        return self._wrap(decode(answer["value"]), remote._name, made_by_tests=made_by_tests)

    def _wrap(self, value: Any, name: str, *, made_by_tests: bool = False) -> Any:
        if isinstance(value, Opaque):
            if value.handle is None:
                raise ProgramError("an object without a handle")  # not what our encoder writes
            return Remote(self, name, value.handle, value.truth, made_by_tests)
        if type(value) in (list, tuple):
            return type(value)(self._wrap(item, name) for item in value)
        if type(value) is dict:
            return {key: self._wrap(item, name) for key, item in value.items()}
        if type(value) is Stream:
            return iter([self._wrap(item, name) for item in value.items])
        return value


def _handle_of(value: Any) -> int:
    """What `Encoder` asks about an object that is not plain data.

    Only what the *tests* hand over may make them not separable. What the program returned earlier goes back under its
    handle, and an exception that it raised is refused: otherwise a program could choose the weaker way.
    """
    if isinstance(value, BaseException):
        raise ProgramError("an exception cannot be handed back to the program")
    handle = value._handle if isinstance(value, Remote) else value.handle if isinstance(value, Opaque) else None
    if handle is None:
        raise NotSeparable
    return int(handle)


def _become(before: Any, after: Any) -> None:
    if type(before) is not type(after):
        return
    if isinstance(before, list | bytearray):
        before[:] = after
    elif isinstance(before, dict | set):
        before.clear()
        before.update(after)


def _call_in_place(function: Any, *arguments: Any, **keywords: Any) -> None:
    if isinstance(function, Remote):
        function._link.ask(function, "call", arguments, keywords, in_place=True)
    else:
        function(*arguments, **keywords)


class _BareCalls(ast.NodeTransformer):
    """Marks calls whose result the tests throw away: `rotate(grid)` is called for what it does to `grid`.

    Elsewhere arguments are copies. A program that emptied the list in `assert f(xs) == sum(xs)` would be right.
    """

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        called = node.value
        if isinstance(called, ast.Call) and ast.unparse(called.func) not in dir(builtins):
            arguments = [called.func, *called.args]
            marked = ast.Call(ast.Name("__call_in_place", ast.Load()), arguments, called.keywords)
            return ast.fix_missing_locations(ast.copy_location(ast.Expr(marked), node))
        return node


def _compiled(source: str, file_name: str) -> Any:
    return compile(_BareCalls().visit(ast.parse(source)), file_name, "exec", dont_inherit=True)


class Remote:
    """A function, class or object of the program. It has no equality with plain values.

    Its own `__contains__` and `__eq__` are asked only about objects that the tests made themselves by calling a class
    (a name in capitals, as in `Trie()`). For what a function returned they are the function's word for its own answer.
    """

    def __init__(
        self, link: _Link, name: str, handle: int | None = None, truth: bool = True, made_by_tests: bool = False
    ) -> None:
        for attribute, value in (
            ("_link", link),
            ("_name", name),
            ("_handle", handle),
            ("_truth", truth),
            ("_made_by_tests", made_by_tests),
        ):
            object.__setattr__(self, attribute, value)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._link.ask(self, "call", arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask(self, "attribute", (name,), {})

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask(self, "set", (name, value), {})

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask(self, "item", (key,), {})

    def __len__(self) -> int:
        length = self._link.ask(self, "length", (), {})
        return length if type(length) is int else -1

    def __iter__(self) -> Any:
        items = self._link.ask(self, "items", (), {})
        return iter(items if type(items) is list else ())

    def __contains__(self, item: Any) -> bool:
        if self._made_by_tests:
            return self._link.ask(self, "contains", (item,), {}) is True
        return item in list(self)

    def __str__(self) -> str:
        text = self._link.ask(self, "text", (), {})
        return text if type(text) is str else ""

    def __bool__(self) -> bool:
        return self._truth

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote) or not (self._made_by_tests or other._made_by_tests):
            return False
        return self._link.ask(self, "equal", (other,), {}) is True  # only the program's own code can say

    def _operate(self, name: str, *others: Any) -> Any:
        if not (self._made_by_tests or any(isinstance(other, Remote) and other._made_by_tests for other in others)):
            return NotImplemented
        result = self._link.ask(self, "operator", (name, *others), {})
        if isinstance(result, Remote):
            object.__setattr__(result, "_made_by_tests", True)  # Vector(1, 2) + Vector(3, 4) is one of theirs too
        return result

    __hash__ = None  # type: ignore[assignment]


_OPERATORS = """
add sub mul truediv floordiv mod pow matmul and or xor lshift rshift radd rsub rmul rtruediv lt le gt ge neg pos abs
"""
for _name in _OPERATORS.split():
    setattr(Remote, f"__{_name}__", functools.partialmethod(Remote._operate, f"__{_name}__"))


def run_tests(channel: Channel, job: dict[str, Any]) -> None:
    """Execute the tests one by one and send `results`: per test None when it held, else [type, message]."""
    link = _Link(channel)
    # the tests' own set-up runs here too, and wins over what the program calls by the same name
    namespace = load_module("tests", [])
    namespace.update({name: Remote(link, name) for name in job["names"]}, __call_in_place=_call_in_place)
    results: list[list[str] | None] = []
    try:
        exec(_compiled(job["setup"], "<setup>"), namespace)
        namespace.update({name: Remote(link, name) for name in job["entry_points"]})
        for source in job["tests"]:
            try:
                exec(_compiled(source, "<tests>"), namespace)
                results.append(None)
            except Exception as error:  # noqa: BLE001 -- a test that does not hold, whatever it raises
                results.append(describe(error))
                if job["stop_at_first_failure"]:
                    break
    except ProgramGone as error:
        results.append(["ended", str(error)])
    except NotSeparable:
        channel.send({"not_separable": True})
        return
    channel.send({"results": results})
