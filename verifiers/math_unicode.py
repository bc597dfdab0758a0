r"""Unicode mathematics as LaTeX: signs, superscripts, fractions, digits of any script; invisible marks removed."""

from __future__ import annotations

import re
import unicodedata


class Refused(Exception):
    """The text must not be given to any further stage: it hides something, or costs too much to evaluate."""


_TABLE = r"""
−–‒﹣－ -
≤⩽≦ \le
≥⩾≧ \ge
≈≃≅ \approx
≠ \ne
·⋅∙ \cdot
× \times
÷⁄∕ /
± \pm
√ \sqrt
∛ \sqrt[3]
∞ \infty
∪ \cup
∩ \cap
∈ \in
∅ \emptyset
ℝ \mathbb{R}
ℤ \mathbb{Z}
π \pi
θ \theta
α \alpha
β \beta
γ \gamma
δ \delta
λ \lambda
μµ \mu
ω \omega
φϕ \phi
∠ \angle
△ \triangle
⟨ \langle
⟩ \rangle
… \ldots
°º˚ ^\circ
€ \euro
£ \pounds
¥￥ \yen
¢ \text{cents}
’‘′ '
“” "
½ \frac{1}{2}
⅓ \frac{1}{3}
⅔ \frac{2}{3}
¼ \frac{1}{4}
¾ \frac{3}{4}
⅕ \frac{1}{5}
⅖ \frac{2}{5}
⅗ \frac{3}{5}
⅘ \frac{4}{5}
⅙ \frac{1}{6}
⅚ \frac{5}{6}
⅛ \frac{1}{8}
⅜ \frac{3}{8}
⅝ \frac{5}{8}
⅞ \frac{7}{8}
"""


def _read_table() -> dict[int, str]:
    table: dict[int, str] = {}
    for line in _TABLE.strip().splitlines():
        characters, latex = line.split(" ")
        ends_in_letter = latex.startswith(("\\", "^")) and latex[-1].isalpha()
        table.update((ord(character), latex + " " * ends_in_letter) for character in characters)
    return table


_TO_LATEX = _read_table()
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣ", "₀₁₂₃₄₅₆₇₈₉"
_SUPERSCRIPTS = str.maketrans(_RAISED, "0123456789+-()nx")
_SUBSCRIPTS = str.maketrans(_LOWERED, "0123456789")
_SUPERSCRIPT_RUN = re.compile(f"[{_RAISED}]+")
_SUBSCRIPT_RUN = re.compile(f"[{_LOWERED}]+")
_BIDI_OVERRIDES = "\u202d\u202e"


def to_latex(text: str) -> str:
    r"""Unicode mathematics as LaTeX, digits of any script as ASCII, invisible marks removed.

    Raises Refused for control characters and for overrides of the writing direction, which show another number than
    the one that is stored.

    >>> to_latex("−½x² ≤ √３")
    '-\\frac{1}{2}x^{2} \\le  \\sqrt 3'
    """
    if text.isascii() and text.isprintable():
        return text
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run.group().translate(_SUPERSCRIPTS) + "}", text)
    text = _SUBSCRIPT_RUN.sub(lambda run: "_{" + run.group().translate(_SUBSCRIPTS) + "}", text)
    characters = []
    for character in unicodedata.normalize("NFKC", text.translate(_TO_LATEX)).translate(_TO_LATEX):
        category = unicodedata.category(character)
        if character in _BIDI_OVERRIDES:
            raise Refused("the answer overrides the writing direction")
        if category == "Nd":
            characters.append(str(unicodedata.digit(character)))
        elif category.startswith("Z") or character in "\t\n\r\f\v":
            characters.append(" ")
        elif category in ("Cc", "Cs", "Co", "Cn"):
            raise Refused(f"the answer holds the control character {character!r}")
        elif category != "Cf":
            characters.append(character)
    return "".join(characters)
