"""Public data sets as rows for RLVR: `python -m rlvr data convert gsm8k IN.jsonl OUT.jsonl --shots 8`."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from rlvr.data import MOST_SHOWN
from rlvr.errors import DataError
from rlvr.recipe import nearest_file

EXEMPLARS: tuple[tuple[str, str], ...] = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done,"
        " there will be 21 trees. How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have"
        " been 21 - 15 = 6. So the answer is 6.",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. So the answer is 5.",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating "
        "35, they had 74 - 35 = 39. So the answer is 39.",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did"
        " Jason give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = "
        "8. So the answer is 8.",
    ),
    (
        "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he "
        "have now?",
        "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 ="
        " 9. So the answer is 9.",
    ),
    (
        "There were nine computers in the server room. Five more computers were installed each day, from monday "
        "to thursday. How many computers are now in the server room?",
        "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 "
        "computers were added. 9 + 20 is 29. So the answer is 29.",
    ),
    (
        "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How many "
        "golf balls did he have at the end of wednesday?",
        "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 "
        "more, he had 35 - 2 = 33 golf balls. So the answer is 33.",
    ),
    (
        "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 "
        "dollars left. 23 - 15 is 8. So the answer is 8.",
    ),
)
"""The eight worked examples of Wei et al. 2022 (arXiv 2201.11903, appendix, Table 20), with the closing words that
Tülu 3 gives them, "So the answer is" for "The answer is" (allenai/open-instruct, scripts/create_ground_truth_data.py at
06fb7188). That script writes no blank after `Answer:`; here there is one, as in the sources' other prompts.
"""

_FINAL_ANSWER = re.compile(r"####\s*(\S.*?)\s*\Z")


def convert_gsm8k(source: pathlib.Path, target: pathlib.Path, *, shots: int) -> int:
    """Write GSM8K (openai/grade-school-math, `{"question", "answer"}` a line) as `messages, ground_truth, dataset`.

    Args:
        shots: 0, or 8 for the worked examples that Tülu 3 puts before every question.

    Returns the number of rows. Raises DataError when `source` is missing or has bad rows (listed by line; nothing is
    written then), or `target` exists.
    """
    if target.exists():
        raise DataError(f"{target} exists already. Remove it, or give another name.")
    prefix = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in EXEMPLARS[:shots])
    rows, problems = [], []
    for place, line in _lines(source):
        try:
            question, answer = _problem(line, place)
        except DataError as error:
            problems.append(str(error))
            continue
        message = {"role": "user", "content": f"{prefix}Question: {question}"}
        rows.append({"messages": [message], "ground_truth": answer, "dataset": "gsm8k"})
    if problems:
        more = f"\n  and {len(problems) - MOST_SHOWN} more" if len(problems) > MOST_SHOWN else ""
        shown = "\n  ".join(problems[:MOST_SHOWN])
        raise DataError(f"{source} is not GSM8K as openai/grade-school-math writes it; correct it:\n  {shown}{more}")
    if not rows:
        raise DataError(f"{source} holds no rows")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def _lines(source: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    if not source.is_file():
        raise DataError(f"there is no file {source} (looked in {pathlib.Path.cwd()}).{nearest_file(source)}")
    with source.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{source}:{number}", line


def _problem(line: bytes, place: str) -> tuple[str, str]:
    """The question, and the number behind `####`.

    Thousands commas go: `tulu3_gsm8k` removes them from the completion alone, so that "1,200" would never match.
    """
    try:
        row: Any = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"{place}: not one JSON object on a line ({error})") from error
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("question", "answer")):
        raise DataError(f"{place}: needs the texts `question` and `answer`, got {row!r:.80}")
    final = _FINAL_ANSWER.search(row["answer"])
    if not final or not row["question"].strip():
        raise DataError(f"{place}: needs a question, and an answer that ends in `#### number`, got {row!r:.160}")
    return row["question"].strip(), final[1].replace(",", "")
