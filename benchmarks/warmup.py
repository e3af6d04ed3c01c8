"""What a warm-up leaves of what a student could do: probabilities of the right tokens in worked solutions.

    python benchmarks/warmup.py plain/student plain/warmup

At temperature 1, on test problems of the embedded suites. The student reads the solution; nothing is decoded.
The plain world has one wording for each line, so there *after* shows whether the student copies the product.
*easy*: the digits of the result of a step that the untouched student does well. *product*, *quotient*: those of the
hard steps. *after*: all that follows the line of a hard product, if the product is right. *after a call*: the same
with ``<call>8</call>`` in front of the product, as if a teacher had written it.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from statistics import fmean

from relaylab.call_tag import format_call
from relaylab.engine.engine import Engine
from relaylab.engine.load import load_engine
from relaylab.tasks.suites import SUITES, Problem, problems

HARD = {"product_2x2": "product", "quotient_4x2": "quotient"}
COLUMNS = ("easy", "product", "quotient", "after", "after a call")


def probability(engine: Engine, question: str, begin: str, text: str) -> float:
    """Of the text after the prompt and the beginning of its answer."""
    ids, rest = engine.prompt_ids([{"role": "user", "content": question}]), engine.text.encode(text)
    row = engine.open(ids + engine.text.encode(begin) + rest[:-1])
    logp = engine.forward([row], positions=len(rest))[0].float().log_softmax(-1)
    engine.close(row)
    return math.exp(sum(logp[i, token].item() for i, token in enumerate(rest)))


def measured(engine: Engine, problem: Problem) -> Iterator[tuple[str, float]]:
    begin, left = "", problem.solution
    for step in problem.steps:
        line, digits = f"{step.expression}=", str(step.result)
        before, left = left.split(line, 1)
        begin, left = begin + before + line, left.removeprefix(digits)
        yield HARD.get(step.kind, "easy"), probability(engine, problem.question, begin, digits)
        if step.kind == "product_2x2":
            yield "after", probability(engine, problem.question, begin + digits, left)
            called = begin + format_call(8) + digits
            yield "after a call", probability(engine, problem.question, called, left)
        begin += digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", help="names or folders")
    parser.add_argument("--count", type=int, default=50, help="test problems per suite")
    parser.add_argument("--world", default="plain", help="of the solutions that are read")
    args = parser.parse_args()
    chosen = [p for s in SUITES if s != "galaxy" for p in problems(s, args.count, world=args.world)]
    print("| student |", " | ".join(f"{c} %" for c in COLUMNS), "|\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for name in args.students:
        engine, values = load_engine(name), defaultdict(list)
        for problem in chosen:
            for what, value in measured(engine, problem):
                values[what].append(value)
        print(f"| {name} |", " | ".join(f"{100 * fmean(values[c]):.1f}" for c in COLUMNS), "|")


if __name__ == "__main__":
    main()
