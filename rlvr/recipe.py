"""Read a recipe: TOML, `extends`, `a.b=value` overrides, and one message with every mistake in it."""

from __future__ import annotations

import difflib
import json
import pathlib
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic

from rlvr.config import Config, as_sources
from rlvr.errors import ConfigError

Section = typing.TypeVar("Section", bound=pydantic.BaseModel)


def load(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> Config:
    """Read, merge and validate a training recipe. Raises ConfigError that lists every mistake."""
    return load_as(Config, path, overrides)


def load_as(schema: type[Section], path: str | pathlib.Path, overrides: Sequence[str] = ()) -> Section:
    """Like `load`, for another schema (the stages of `sft_dpo`)."""
    table = read_toml(pathlib.Path(path))
    for override in overrides:
        apply_override(table, override)
    return validate(schema, table, str(path))


def read_toml(path: pathlib.Path, seen: tuple[pathlib.Path, ...] = ()) -> dict[str, Any]:
    """The recipe's table over the one it `extends` (a path relative to the recipe), `without` the options named."""
    if path.resolve() in seen:
        chain = " -> ".join(str(p) for p in (*seen, path.resolve()))
        raise ConfigError(f"recipes extend each other in a circle: {chain}. Remove one `extends`.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        by = f" (`extends` of {seen[-1]})" if seen else ""
        raise ConfigError(f"there is no recipe {path}{by}.{nearest_file(path, '*.toml')}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the path of a .toml recipe in it.") from None
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. Correct it there.") from error
    base, without = table.pop("extends", None), table.pop("without", [])
    if base is None:
        if without:
            raise ConfigError(f"{path}: without={without!r} has no recipe to leave anything out of: set extends too.")
        return table
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends must be the path of a recipe, relative to this one; got {base!r}")
    below = read_toml(path.parent / base, (*seen, path.resolve()))
    for dotted in without:
        leave_out(below, dotted, f"{path}: without={without!r}: {base}")
    return merge(below, table)


def leave_out(table: dict[str, Any], dotted: str, place: str) -> None:
    """Take an option or a section out of a table. Raises ConfigError, which begins with `place`, when it is not there.

    >>> table = {"critic": {"init": "scratch"}, "seed": 1}
    >>> leave_out(table, "critic.init", "mine.toml"); leave_out(table, "seed", "mine.toml"); table
    {'critic': {}}
    """
    *sections, option = dotted.split(".") if isinstance(dotted, str) else [repr(dotted)]
    node: Any = table
    for section in sections:
        node = node.get(section) if isinstance(node, dict) else None
    if not isinstance(node, dict) or option not in node:
        raise ConfigError(f"{place} has no {dotted}. Remove it from `without`.")
    del node[option]


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`, table by table; lists and values are replaced whole.

    >>> merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}
    """
    merged = dict(base)
    for key, value in top.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def apply_override(table: dict[str, Any], override: str) -> None:
    """Apply one `a.b=value`. The value is read as TOML; what is not TOML is taken as a string.

    >>> table = {"rollout": {"temperature": 1.0}}
    >>> apply_override(table, "rollout.temperature=0.7"); apply_override(table, "model.path=Qwen/Qwen2.5-0.5B")
    >>> table
    {'rollout': {'temperature': 0.7}, 'model': {'path': 'Qwen/Qwen2.5-0.5B'}}
    """
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"an override is spelt section.option=value; got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    node: Any = table
    for depth, key in enumerate(keys):
        last = depth + 1 == len(keys)
        if isinstance(node, dict):
            if not last and keys[depth + 1].isdigit() and key in node:
                node[key] = as_sources(node[key])  # written short, as text or a list of texts
            if not last:
                node = node.setdefault(key, {})
                continue
        elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
            if not last:
                node = node[int(key)]
                continue
        else:
            raise ConfigError(f"{override!r}: {_not_inside(node, keys[:depth], key)}")
        node[int(key) if isinstance(node, list) else key] = value


def _not_inside(node: Any, path: Sequence[str], key: str) -> str:
    where = ".".join(path)
    if isinstance(node, list):
        return f"{where} has no entry {key!r}; the last one is {len(node) - 1}"
    return f"{where} is {node!r}, which has no options inside; set {where}=... itself"


def validate(schema: type[Section], table: dict[str, Any], source: str) -> Section:
    """Validate strictly, as JSON. Raises ConfigError with all mistakes, each with the nearest valid key."""
    try:
        return schema.model_validate_json(json.dumps(table, default=str))
    except pydantic.ValidationError as error:
        known = dict(options(schema))
        lines = [f"  {line}" for e in error.errors() for line in _explain(e, known)]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"{source}: {count} in the recipe\n" + "\n".join(lines)) from None


def _explain(error: Any, known: dict[str, str]) -> list[str]:
    """The mistakes of one pydantic error, a line each: where, what, the value seen, and the nearest valid key."""
    if error["type"] == "contradictions":
        return list(error["ctx"]["problems"])
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return [f"{where}: no such option (value {error['input']!r}). {nearest(where, known)}"]
    if error["type"] == "missing":
        inside = [name for name in known if name.startswith(f"{where}.")]
        what = f"the section [{where}] is missing" if inside else f"{where}: missing"
        example = inside[0] if inside else where
        return [f"{what}, and it has no default. Add it to the recipe, or give {example}=... on the command line."]
    return [f"{where}: {error['msg']} (got {error['input']!r})"]


def nearest(where: str, known: dict[str, str]) -> str:
    """The likeliest meaning of an unknown key: same leaf elsewhere, or a near spelling.

    >>> nearest("rollout.temprature", {"rollout.temperature": "float", "seed": "int"})
    'Did you mean rollout.temperature?'
    >>> nearest("learning_rate", {"optimizer.learning_rate": "float"})
    'Did you mean optimizer.learning_rate?'
    >>> nearest("rolout", {"rollout.temperature": "float", "seed": "int"})
    'Did you mean the section [rollout]?'
    """
    position = re.search(r"\.(\d+)\.", where)
    if position:  # options of list entries are known as a.N.b
        return nearest(where.replace(position[0], ".N."), known).replace(".N.", position[0])
    parent, _, leaf = where.rpartition(".")
    sections = {name.partition(".")[0] for name in known if "." in name}
    if not parent and (close := difflib.get_close_matches(where, sections, n=1, cutoff=0.7)):
        return f"Did you mean the section [{close[0]}]?"
    siblings = {name.rsplit(".", 1)[-1]: name for name in known if name.rpartition(".")[0] == parent}
    if close := difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.7):
        return f"Did you mean {siblings[close[0]]}?"
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    near = same_leaf or difflib.get_close_matches(where, known, n=1, cutoff=0.6)
    if not near:
        leaves = {name.rsplit(".", 1)[-1]: name for name in known}
        near = [leaves[match] for match in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    if near:
        return f"Did you mean {' or '.join(near[:3])}?"
    return f"Valid here: {', '.join(siblings.values()) or 'nothing'}."


def nearest_file(path: pathlib.Path, pattern: str = "*") -> str:
    """A hint at the file beside a missing one whose name is most like it; empty where none is."""
    near = difflib.get_close_matches(path.name, [found.name for found in path.parent.glob(pattern)], n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""


def options(schema: type[pydantic.BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted option of a schema with its type, sections first entered in order."""
    for name, field in schema.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            yield from options(section, f"{prefix}{name}.")
            continue
        yield prefix + name, str(field.annotation)
        if (entry := _list_entry(field.annotation)) is not None:
            yield from options(entry, f"{prefix}{name}.N.")


def _list_entry(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The section that each entry of a list holds."""
    if typing.get_origin(annotation) is list:
        return _section(typing.get_args(annotation)[0])
    return None


def _section(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The nested section that an annotation holds, if it holds exactly one."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        sections = [s for s in map(_section, typing.get_args(annotation)) if s is not None]
        return sections[0] if len(sections) == 1 else None
    return None
