"""Run in a process of its own by test_math_answer.py: judge hostile answers under an audit hook and print what ran.

An audit hook cannot be removed, hence the process. The verdicts are first given once without the hook, so that the
imports and caches of sympy are in place; what happens afterwards is the work of the verdicts alone.
"""

from __future__ import annotations

import json
import sys

from verifiers.base import Sample
from verifiers.registry import resolve

PAYLOADS = (
    "__import__('os').system('echo ran > /tmp/ran')",
    "exec(\"open('/tmp/ran','w')\")",
    "().__class__.__base__.__subclasses__()",
    "lambda: print(1)",
    "open('/etc/passwd').read()",
    "eval('1+1')",
    r"\operatorname{eval}(1+1)",
    r"\text{__import__('os').getcwd()}",
    r"\log(__import__('os').getpid())",
    "x.__class__",
    "f'{open(0)}'",
    "S('__import__(\"os\").getcwd()')",
    "Symbol('x', real=__import__('os'))",
    r"\frac{__import__('os').getcwd()}{2}",
    r"\sqrt[3]{-8} + print(1)",
    r"\log x + exit()",
    "1;import os",
    "@@import os",
)
GOLDS = ("5", r"\log x", r"\text{Sunday}", r"\sqrt[3]{-8}", r"(1,\log 2)", r"y = \log x + \sqrt[3]{-2}")
FRAMES = (r"\boxed{%s}", "The answer is %s", "#### %s", "so $%s$", "%s")
WATCHED = ("compile", "exec", "open", "import", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "code.")


def judge_all() -> int:
    """Give every payload to every path of every verifier."""
    count = 0
    for name in ("math", "gsm8k", "tulu3_math", "tulu3_gsm8k"):
        verifier = resolve(name)()
        for payload in PAYLOADS:
            for frame in FRAMES:
                for gold in GOLDS if "gsm8k" not in name else ("5",):
                    verifier.verify(Sample(completion=frame.replace("%s", payload), ground_truth=gold))
                    count += 1
    return count


def main() -> None:
    """Print the number of verdicts and every watched event as JSON."""
    judge_all()
    for module in ("verifiers.math_symbolic", "verifiers.math_reader", "verifiers.math_judge"):
        for cached in vars(sys.modules[module]).values():
            if hasattr(cached, "cache_clear") and cached.__name__ in ("parse", "read_answer", "read_gold"):
                cached.cache_clear()
    events: list[str] = []
    is_watching = True

    def watch(event: str, arguments: tuple) -> None:
        if is_watching and event.startswith(WATCHED):
            events.append(f"{event} {str(arguments)[:200]}")

    sys.addaudithook(watch)
    count = judge_all()
    judged = list(events)
    compile("1", "<control>", "eval")  # the hook sees what it should see
    is_watching = False
    print(json.dumps({"verdicts": count, "events": judged, "control": len(events) - len(judged)}))


if __name__ == "__main__":
    main()
