"""A language model as judge, through an OpenAI-compatible endpoint: one rating of 1 to 5 a completion.

Verifiers are the better source where there are any. As in Tülu 3's preference data (arXiv 2411.15124, section 5.2)
the chosen answer is one of those rated best, and the rejected one is rated lower.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import re
from collections.abc import Sequence

from rlvr.errors import ConfigError, IndeterminateError
from sft_dpo.config import Judge

PROMPT = """Rate how well the answer serves the request: does it follow every instruction, is it true, does it help?

[Request]
{prompt}

[Answer]
{answer}

Reply with a line "Rating: N", where N is 1 (useless), 2, 3, 4 or 5 (excellent), and nothing else."""
RATING = re.compile(r"rating\s*:\s*([1-5])\b", re.IGNORECASE)
MOST_WITHOUT_RATING = 0.05


def refuse_unusable(judge: Judge) -> str:
    """The key. Raises ConfigError when it or the package openai is missing."""
    if importlib.util.find_spec("openai") is None:
        raise ConfigError("judge needs the package openai: pip install openai")
    key = os.environ.get(judge.key_variable)
    if not key:
        raise ConfigError(
            f"judge.key_variable={judge.key_variable!r}: the environment has no such variable. Set it to the key "
            "(to any text for a server without keys)."
        )
    return key


def rate(judge: Judge, asked: Sequence[tuple[str, str]]) -> list[float | None]:
    """Rating of each (prompt, answer); None where the judge's reply holds none.

    Raises ConfigError as `refuse_unusable` does, and IndeterminateError when the endpoint fails or more than 5% of the
    replies hold no rating.
    """
    key = refuse_unusable(judge)
    import openai

    client = openai.OpenAI(base_url=judge.url, api_key=key, timeout=judge.timeout_seconds)

    def one(pair: tuple[str, str]) -> float | None:
        prompt, answer = pair
        content = PROMPT.format(prompt=prompt, answer=answer)
        reply = client.chat.completions.create(
            model=judge.model, messages=[{"role": "user", "content": content}], temperature=0.0
        )
        found = RATING.findall(reply.choices[0].message.content or "")
        return float(found[-1]) if found else None

    try:
        with concurrent.futures.ThreadPoolExecutor(judge.concurrency) as threads:
            ratings = list(threads.map(one, asked))
    except openai.OpenAIError as error:
        raise IndeterminateError(
            f"the judge at {judge.url} failed: {error}. Check judge.url and judge.model."
        ) from error
    missing = ratings.count(None)
    if missing > MOST_WITHOUT_RATING * len(ratings):
        raise IndeterminateError(
            f"{missing} of {len(ratings)} replies of judge.model={judge.model!r} hold no rating (limit "
            f'{MOST_WITHOUT_RATING:.0%}): it does not answer "Rating: N". Use another model.'
        )
    return ratings
