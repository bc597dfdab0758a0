"""Values as text: what a program returned, made of plain data only.

Only the data of the built-in base types crosses the wall between the untrusted process and its judge. A subclass of
`int` that lies in `__eq__` arrives as the number that it holds; anything else arrives as an `Opaque` that equals
nothing. JSON with tags: scalars and lists stand for themselves, every other type is an object with one key.
Standard library only: the child imports this file without the rest of the package.
"""

from __future__ import annotations

import dataclasses
import decimal
import fractions
import itertools
import json
import math
from typing import Any

MOST_NODES = 200_000
DEEPEST = 100
_MOST_INTEGER_BITS = 1 << 20
MOST_FRACTION_BITS = 1 << 14
"""Of numerator and denominator each: reducing a fraction takes time quadratic in them."""
_MOST_KEYS_OF_ONE_HASH = 50
_ITERATORS: tuple[type, ...] = (
    type(iter([])),
    type(iter(())),
    type(iter("")),
    type(iter({})),
    type(iter({}.values())),
    type(iter({}.items())),
    type(iter(set())),
    type(iter(range(0))),
    type(iter(range(1 << 100))),
    type(reversed([])),
    type(_ for _ in ()),
    map,
    filter,
    zip,
    enumerate,
    reversed,
    itertools.chain,
    itertools.combinations,
    itertools.permutations,
    itertools.product,
    itertools.islice,
    itertools.accumulate,
    type({}.values()),
)


class ValueTooLarge(ValueError):
    """A value with more nodes, levels or digits than are carried."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """Stands for an object that is not plain data. Equal to nothing but itself."""

    type_name: str
    truth: bool
    handle: int | None = None
    """Number under which the program's process keeps the object."""

    def __bool__(self) -> bool:
        return self.truth


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """The items of an iterator: it can be consumed, but equals nothing."""

    items: list[Any]

    def __iter__(self) -> Any:
        return iter(self.items)


class Encoder:
    """Turns objects into JSON values. One per value: it counts the nodes.

    >>> Encoder().encode((1, {"a": {2}}))
    {'t': [1, {'d': [['a', {'s': [2]}]]}]}
    """

    def __init__(self, keep: Any = None) -> None:
        self._nodes = 0
        self._keep = keep  # called with an opaque object; returns its handle

    def encode(self, value: Any, depth: int = 0) -> Any:
        """Raises ValueTooLarge."""
        kind = type(value)
        if value is None or kind is bool:
            return value
        self._nodes += 1
        if self._nodes > MOST_NODES or depth > DEEPEST:
            raise ValueTooLarge(f"more than {MOST_NODES} items or {DEEPEST} levels")
        # the base class's own methods, so that an override cannot lie about what the object holds
        if isinstance(value, int):
            return self._integer(int.__int__(value) if kind is not int else value)
        if isinstance(value, float):
            return self._float(float.__float__(value) if kind is not float else value)
        if isinstance(value, str):
            return str.__str__(value) if kind is str else str.join("", list(str.__iter__(value)))
        if isinstance(value, list):
            return [self.encode(item, depth + 1) for item in list.__iter__(value)]
        if isinstance(value, tuple):
            return {"t": [self.encode(item, depth + 1) for item in tuple.__iter__(value)]}
        if isinstance(value, dict):
            return {"d": [[self.encode(k, depth + 1), self.encode(v, depth + 1)] for k, v in dict.items(value)]}
        return self._rare(value, kind, depth)

    def _rare(self, value: Any, kind: type, depth: int) -> Any:
        if isinstance(value, set):
            return {"s": [self.encode(item, depth + 1) for item in set.__iter__(value)]}
        if isinstance(value, frozenset):
            return {"z": [self.encode(item, depth + 1) for item in frozenset.__iter__(value)]}
        if isinstance(value, (bytes, bytearray)):
            return {"b" if isinstance(value, bytes) else "B": bytes(memoryview(value)).hex()}
        if isinstance(value, complex):
            return {"c": [self._float(value.real), self._float(value.imag)]} if kind is complex else self._opaque(value)
        if kind is decimal.Decimal:
            return {"D": str(value)}
        if kind is fractions.Fraction:
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_FRACTION_BITS:
                raise ValueTooLarge(f"a fraction of more than {MOST_FRACTION_BITS} bits")
            return {"F": [self._integer(value.numerator), self._integer(value.denominator)]}
        if kind is range:
            return {"r": [self._integer(value.start), self._integer(value.stop), self._integer(value.step)]}
        if kind in (type({}.keys()), type({}.items())):
            return {"s": [self.encode(item, depth + 1) for item in value]}
        if kind in _ITERATORS:
            items = list(itertools.islice(value, MOST_NODES - self._nodes + 1))
            return {"it": [self.encode(item, depth + 1) for item in items]}
        return self._opaque(value)

    def _opaque(self, value: Any) -> Any:
        name = str(getattr(type(value), "__name__", "?"))[:80]
        return {"o": [name, bool(value), self._keep(value) if self._keep else None]}

    def _integer(self, value: int) -> Any:
        if -(1 << 53) < value < (1 << 53):
            return value
        if value.bit_length() > _MOST_INTEGER_BITS:
            raise ValueTooLarge(f"an integer of more than {_MOST_INTEGER_BITS} bits")
        return {"i": hex(value)}

    def _float(self, value: float) -> Any:
        return value if math.isfinite(value) else {"f": str(value)}


def decode(value: Any, depth: int = 0) -> Any:
    """The plain object that an encoded value stands for.

    Raises:
        ValueError: not something that `Encoder` writes (the sender is not trusted).

    >>> decode({"t": [1, {"i": "0x20000000000000"}]})
    (1, 9007199254740992)
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > 2 * DEEPEST:
        raise ValueError("a value nested too deeply")
    if isinstance(value, list):
        return [decode(item, depth + 1) for item in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"not an encoded value: {str(value)[:80]}")
    ((tag, body),) = value.items()
    try:
        return _DECODERS[tag](body, depth + 1)
    except (KeyError, TypeError, ArithmeticError, AttributeError, IndexError) as error:
        raise ValueError(f"not an encoded value: {str(value)[:80]}") from error


def _items(body: Any, depth: int) -> list[Any]:
    if not isinstance(body, list):
        raise TypeError("items must be a list")
    return [decode(item, depth) for item in body]


def checked_keys(keys: list[Any]) -> list[Any]:
    """The keys, if a set of them takes time linear in their number. Raises ValueError.

    Many different keys of one hash (multiples of 2**61 - 1, say) would make it quadratic here, in the judge.
    """
    if len(keys) > 1000:
        same_hash: dict[int, list[Any]] = {}
        for key in keys:
            others = same_hash.setdefault(hash(key), [])
            if key not in others:
                others.append(key)
            if len(others) > _MOST_KEYS_OF_ONE_HASH:
                raise ValueError("keys whose hashes collide")
    return keys


def _keys(body: Any, depth: int) -> list[Any]:
    return checked_keys(_items(body, depth))


def _numbers(body: Any, depth: int, kinds: tuple[type, ...]) -> list[Any]:
    numbers = _items(body, depth)
    if any(type(number) not in kinds for number in numbers):
        raise TypeError("not numbers")  # int(Decimal("1e999999999")) would fill the memory
    return numbers


def _small_integers(body: Any, depth: int) -> list[int]:
    numbers = _numbers(body, depth, (int,))
    if any(number.bit_length() > MOST_FRACTION_BITS for number in numbers):
        raise ValueError("a fraction too long to reduce")
    return numbers


_DECODERS: dict[str, Any] = {
    "t": lambda body, depth: tuple(_items(body, depth)),
    "d": lambda body, depth: dict(
        zip(_keys([k for k, _ in body], depth), _items([v for _, v in body], depth), strict=True)
    ),
    "s": lambda body, depth: set(_keys(body, depth)),
    "z": lambda body, depth: frozenset(_keys(body, depth)),
    "b": lambda body, _depth: bytes.fromhex(body),
    "B": lambda body, _depth: bytearray.fromhex(body),
    "c": lambda body, depth: complex(*[float(part) for part in _numbers(body, depth, (int, float))]),
    "D": lambda body, _depth: decimal.Decimal(str(body)),
    "F": lambda body, depth: fractions.Fraction(*_small_integers(body, depth)),
    "r": lambda body, depth: range(*_numbers(body, depth, (int,))),
    "it": lambda body, depth: Stream(_items(body, depth)),
    "i": lambda body, _depth: int(body, 16),
    "f": lambda body, _depth: float(body),
    "o": lambda body, _depth: Opaque(str(body[0])[:80], bool(body[1]), None if body[2] is None else int(body[2])),
}


def dump(message: Any) -> bytes:
    """A message as bytes of JSON."""
    return json.dumps(message, separators=(",", ":")).encode()


def load(data: bytes) -> Any:
    """Raises ValueError for anything but a JSON document of moderate depth."""
    try:
        return json.loads(data)
    except (RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"unreadable message: {type(error).__name__}") from error
