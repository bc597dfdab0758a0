"""What `python -m rlvr verifiers` prints: every known verifier with its source, options and documentation."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Sequence

import pydantic

from verifiers import registry
from verifiers.base import Verifier
from verifiers.errors import VerifierError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OptionDescription:
    """One option of a verifier."""

    name: str
    type: str
    default: str
    """As a recipe spells it, or "required"."""
    doc: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VerifierDescription:
    """One entry of the listing."""

    name: str
    source: str
    """Module and class of a built-in verifier, entry point and distribution, or file and line."""
    doc: str = ""
    options: tuple[OptionDescription, ...] = ()
    error: str = ""
    """Why this verifier cannot be used here; empty when it can."""


def describe(plugins: Sequence[str] = ()) -> list[VerifierDescription]:
    """Describe every verifier; one that cannot be imported is listed with its error and disturbs no other.

    Raises PluginError for a file of `plugins` that does not load.
    """
    for file in plugins:
        registry.load_plugin(file)
    return [describe_one(name) for name in registry.names()]


def describe_one(name: str) -> VerifierDescription:
    """Describe one verifier by its name."""
    source = registry.source_of(name)
    try:
        verifier = registry.resolve(name)
    except VerifierError as error:
        return VerifierDescription(name=name, source=source, error=str(error))
    doc = inspect.cleandoc(verifier.__doc__ or "")
    return VerifierDescription(name=name, source=source, doc=doc, options=_options(verifier))


def _options(verifier: type[Verifier]) -> tuple[OptionDescription, ...]:
    docs = _field_docs(verifier.Config)
    return tuple(
        OptionDescription(
            name=name, type=_type_name(field), default=_default(field), doc=field.description or docs.get(name, "")
        )
        for name, field in verifier.Config.model_fields.items()
    )


def _type_name(field: pydantic.fields.FieldInfo) -> str:
    annotation = field.annotation
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", name):
        return literal.group(1).replace("'", '"').replace(", ", " | ")
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", name if "[" not in str(annotation) else str(annotation))


def _default(field: pydantic.fields.FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "unset" if value is None else json.dumps(value, default=repr, ensure_ascii=False)


def _field_docs(config: type[pydantic.BaseModel]) -> dict[str, str]:
    """The string under each field; empty where the class has no source file (a console)."""
    docs: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not (issubclass(owner, pydantic.BaseModel) and owner is not pydantic.BaseModel):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        except (OSError, TypeError, SyntaxError):
            continue
        definition = tree.body[0]
        if not isinstance(definition, ast.ClassDef):
            continue
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    docs[name] = " ".join(doc.split())
    return docs


def format_listing(descriptions: Sequence[VerifierDescription]) -> str:
    """The listing as text, for a terminal of 100 columns."""
    blocks = []
    for entry in descriptions:
        lines = [f"{entry.name}    {entry.source}"]
        if entry.error:
            lines += textwrap.wrap(
                f"cannot be used: {entry.error}", 100, initial_indent="    ", subsequent_indent="    "
            )
        for paragraph in entry.doc.split("\n\n"):
            lines += textwrap.wrap(paragraph, 100, initial_indent="    ", subsequent_indent="    ")
        for option in entry.options:
            text = f"{option.name}: {option.type} = {option.default}" + (f"  {option.doc}" if option.doc else "")
            lines += textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="          ")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
