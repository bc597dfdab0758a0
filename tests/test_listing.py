"""The listing shows what a user needs to choose a verifier and set its options."""

from __future__ import annotations

import pytest

from verifiers.base import Verifier
from verifiers.listing import describe_one, format_listing


def test_an_option_is_shown_with_its_type_default_and_documentation() -> None:
    options = {option.name: option for option in describe_one("exact").options}
    assert options["mode"].type == '"string" | "normalised" | "choice"'
    assert options["mode"].default == '"string"'
    assert options["mode"].doc.startswith("`string`: equal after trimming.")
    assert describe_one("combine").options[0].default == "required"
    assert describe_one("length").options[2].default == "unset"


def test_every_built_in_option_is_documented_in_the_listing_text() -> None:
    text = format_listing(
        [describe_one(name) for name in ("exact", "regex", "json_schema", "length", "combine", "trl")]
    )
    for name in ("exact", "regex", "json_schema", "length", "combine", "trl"):
        assert f"{name}    verifiers." in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_class_without_source_is_described_without_option_documentation() -> None:
    namespace: dict[str, object] = {"Verifier": Verifier}
    exec("class C(Verifier):\n  class Config(Verifier.Config):\n    depth: int = 3\n", namespace)
    from verifiers.listing import _options

    (option,) = _options(namespace["C"])  # type: ignore[arg-type]
    assert (option.name, option.type, option.default, option.doc) == ("depth", "int", "3", "")


@pytest.mark.parametrize("name", ["exact", "length"])
def test_a_description_holds_the_whole_docstring(name: str) -> None:
    from verifiers.registry import resolve

    assert describe_one(name).doc.split()[0] == (resolve(name).__doc__ or "").split()[0]
