"""Find the program in a completion: its last fenced block of Python."""

from __future__ import annotations

import re

PYTHON_TAGS = frozenset({"", "python", "python3", "py", "py3"})
_FENCE = re.compile(r"^ {0,3}(?P<mark>`{3,}|~{3,})[ \t]*(?P<tag>[^\s`{]*)[^\n]*$", re.MULTILINE)


def extract_program(completion: str, *, unfenced: bool = False) -> str | None:
    r"""The text of the last fenced block whose tag is none or Python's; None when there is none.

    A block ends at a fence of the same mark, as least as long, without a tag; the last block may be left open
    (generation often stops at the closing fence). Blocks in other languages (`text`, `bash`) are passed over.

    Args:
        unfenced: take the whole completion where it has no fence at all.

    >>> extract_program("Like so:\n```python\nx = 1\n```\nwhich prints\n```text\n1\n```")
    'x = 1\n'
    >>> extract_program("def f(): return 1", unfenced=True)
    'def f(): return 1'
    """
    program: str | None = None
    opened: re.Match[str] | None = None
    for match in _FENCE.finditer(completion):
        if opened is None:
            opened = match
        elif match["mark"].startswith(opened["mark"]) and not match["tag"]:
            if opened["tag"].lower() in PYTHON_TAGS:
                program = completion[opened.end() + 1 : match.start()]
            opened = None
    if opened is not None and opened["tag"].lower() in PYTHON_TAGS:
        program = completion[opened.end() + 1 :]
    if program is None and unfenced and not _FENCE.search(completion):
        return completion
    return program
