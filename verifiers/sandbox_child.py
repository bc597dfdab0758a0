"""What runs inside the walls, around the untrusted program: load it, answer calls, send back plain values.

Nothing here decides a verdict. The program shares this address space and can overwrite all of it; what it gains is the
right to claim a value for each call, which is what a program is for. Expected values and comparisons are with the
parent process. Standard library only: the zygote imports this file without the rest of the package.

Order of messages: the child says `up` when its walls stand; the parent sends the program; the child says `ready` or
`failed`; only then does the parent send calls, so that code at module level sees neither them nor the token that
answers must carry.
"""

from __future__ import annotations

import atexit
import builtins
import os
import struct
import sys
import threading
import traceback
import types
from typing import Any

from verifiers.sandbox_values import Encoder, Opaque, Stream, ValueTooLarge, decode, dump, load

CONTROL = 3
_LONGEST_TEXT = 300


class Channel:
    """Messages of this process's end of the control socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, message: Any, token: str = "") -> None:
        data = token.encode() + dump(message)
        view = memoryview(struct.pack(">I", len(data)) + data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def receive(self) -> Any:
        """The next message. Raises EOFError when the parent is gone."""
        (length,) = struct.unpack(">I", self._read(4))
        return load(self._read(length))

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            part = os.read(self._descriptor, length)
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def describe(error: BaseException) -> list[str]:
    """[type name, message] of an exception whose own methods may misbehave."""
    try:
        message = str(error)[:_LONGEST_TEXT]
    except BaseException:  # noqa: BLE001 -- the program's own __str__
        message = ""
    return [str(getattr(type(error), "__name__", "?"))[:80], message]


def _failure_kind(error: BaseException) -> str:
    for kind, name in ((SyntaxError, "syntax"), (MemoryError, "memory"), (SystemExit, "exit")):
        if isinstance(error, kind):
            return name
    return "exception"


def _report(error: BaseException) -> None:
    try:
        trace = error.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<"):
            trace = trace.tb_next  # the program's frames, not ours
        traceback.print_exception(type(error), error, trace, limit=-8)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 -- the program may have replaced the streams
        pass


def _flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 -- the program may have replaced the stream
        pass


def load_module(name: str, sources: list[tuple[str, str]]) -> dict[str, Any]:
    """Execute the sources, (file name, text) each, in one new module, and return its namespace."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    for file_name, text in sources:
        exec(compile(text, file_name, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def serve(control: int, run_tests: Any) -> None:
    """Answer the parent until it is done with this process. `run_tests` is sandbox_checker's, which imports this
    file."""
    channel = Channel(control)
    channel.send("up")
    job = channel.receive()
    kinds = {"calls": _serve_calls, "inside": _serve_inside, "program": _run_program, "checker": run_tests}
    kinds[job["kind"]](channel, job)


def _load_solution(channel: Channel, job: dict[str, Any]) -> dict[str, Any] | None:
    try:
        namespace = load_module("solution", [(f"<{part}>", text) for part, text in job["sources"]])
    except BaseException as error:  # noqa: BLE001 -- whatever the program raises is its failure, SystemExit too
        _report(error)
        channel.send({"failed": [_failure_kind(error), *describe(error)]})
        return None
    _flush()
    channel.send("ready")
    return namespace


def _serve_calls(channel: Channel, job: dict[str, Any]) -> None:
    namespace = _load_solution(channel, job)
    if namespace is None:
        return
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    while True:
        request = channel.receive()
        for step in request["steps"]:
            channel.send(_answer(namespace, kept, keep, step), request["token"])


def _answer(namespace: dict[str, Any], kept: list[Any], keep: Any, step: dict[str, Any]) -> dict[str, Any]:
    try:
        changed: list[Any] = []
        value = eval(step["source"], namespace) if "source" in step else _operate(namespace, kept, step, changed)
        answer = {"value": Encoder(keep).encode(value)}
        if changed:
            answer["arguments"] = [Encoder(keep).encode(argument) for argument in changed]
    except ValueTooLarge as error:
        answer = {"raised": ["output", *describe(error)]}
    except BaseException as error:  # noqa: BLE001 -- whatever the function raises is its failure, SystemExit too
        _report(error)
        answer = {"raised": [_failure_kind(error), *describe(error)]}
    _flush()
    return answer


def _operate(namespace: dict[str, Any], kept: list[Any], step: dict[str, Any], changed: list[Any]) -> Any:
    """One operation that the separate test process asks for: see sandbox_checker. Fills `changed` with the arguments
    of a call that is made for what it does to them."""

    def restore(value: Any) -> Any:
        if isinstance(value, Opaque) and value.handle is not None:
            return kept[value.handle]
        if type(value) in (list, tuple):
            return type(value)(restore(item) for item in value)
        if type(value) is dict:
            return {key: restore(item) for key, item in value.items()}
        if type(value) is Stream:
            return iter([restore(item) for item in value.items])
        return value

    target = kept[step["handle"]] if step["handle"] is not None else namespace[step["name"]]
    arguments = [restore(decode(value)) for value in step["arguments"]]
    keywords = {name: restore(decode(value)) for name, value in step["keywords"].items()}
    if step["operation"] == "call":
        value = target(*arguments, **keywords)
        changed += arguments if step["in_place"] else []
        return value
    operations: dict[str, Any] = {
        "attribute": getattr,
        "item": lambda owner, key: owner[key],
        "length": len,
        "items": list,
        "contains": lambda owner, item: item in owner,
        "equal": lambda owner, other: owner == other,
        "text": str,
        "operator": lambda owner, name, *others: getattr(owner, name)(*others),
        "set": setattr,
    }
    return operations[step["operation"]](target, *arguments)


def _serve_inside(channel: Channel, job: dict[str, Any]) -> None:
    """Run test statements beside the program: the weaker way, for tests that hand it objects."""
    namespace = _load_solution(channel, job)
    if namespace is None:
        return
    request = channel.receive()
    for step in request["steps"]:
        try:
            exec(compile(step["source"], "<tests>", "exec", dont_inherit=True), namespace)
            answer: dict[str, Any] = {"value": True}
        except BaseException as error:  # noqa: BLE001 -- a failed test, or a program that tries to leave
            _report(error)
            answer = {"raised": [_failure_kind(error), *describe(error)]}
        _flush()
        channel.send(answer, request["token"])


def _run_program(channel: Channel, job: dict[str, Any]) -> None:
    """Run the program as a script and leave as the interpreter would."""
    code = 0
    try:
        load_module("__main__", [("<program>", job["program"])])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException as error:  # noqa: BLE001 -- an uncaught exception of the script
        _report(error)
        channel.send({"failed": [_failure_kind(error), *describe(error)]})
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 -- the script's own threads and exit functions
        code = code or 1
    os._exit(code & 0xFF)


BUILTIN_EXCEPTIONS = {
    name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)
}
