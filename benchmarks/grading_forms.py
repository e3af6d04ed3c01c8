"""How many answers are graded as they should be, beside plain math-verify: the table of docs/grading.md.

    .venv/bin/python benchmarks/grading_forms.py                      # grading_forms.txt, by kind of answer
    .venv/bin/python benchmarks/grading_forms.py --pairs pairs.jsonl  # and a file of pairs, by benchmark
    .venv/bin/python benchmarks/grading_forms.py --show               # and each answer that is graded otherwise
    .venv/bin/python benchmarks/grading_forms.py --fuzz 10000         # that many random answers: reasons and times

A line of the file of pairs has ``benchmark``, ``answer`` (the reference), ``kind``, ``unit``, ``written``, ``right``.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from relaylab.tasks.grading import Grade, grade_details

FORMS = Path(__file__).with_suffix(".txt")


class Pair(NamedTuple):
    """An answer, and whether a reader would take it for the reference."""

    group: str
    answer: str
    written: str
    right: bool
    kind: str
    unit: str = ""
    tolerance: float = 0.0

    def grade(self) -> Grade:
        """What relaylab says."""
        text = rf"\boxed{{{self.written}}}"
        return grade_details(text, self.answer, kind=self.kind, unit=self.unit, tolerance=self.tolerance)

    def plain(self) -> bool:
        """What math-verify alone says. Its alarm is by the clock; a minute is enough on a busy machine, too."""
        from math_verify import parse, verify

        sides = (parse(rf"\boxed{{{side}}}", parsing_timeout=60) for side in (self.answer, self.written))
        return bool(verify(*sides, timeout_seconds=60))


def read_forms(path: Path = FORMS) -> list[Pair]:
    """The pairs of a file in the form of ``grading_forms.txt``. A reference is right by itself."""
    pairs: list[Pair] = []
    kind, answer, more = "", "", {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(("  + ", "  - ")):
            right = line[2] == "+"
            pairs += [Pair(kind, answer, written, right, kind, **more) for written in line[4:].split(" ;; ")]
        elif line and not line.startswith("#"):
            head, answer = line.split(" : ", 1)
            kind, *settings = head.split()
            more = dict(setting.split("=", 1) for setting in settings)
            if "tolerance" in more:
                more["tolerance"] = float(more["tolerance"])
            pairs.append(Pair(kind, answer, answer, True, kind, **more))
    return pairs


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a JSON Lines file."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Pair(r["benchmark"], r["answer"], r["written"], r["right"], r["kind"], r["unit"]) for r in rows]


def table(pairs: Iterable[Pair], *, show: bool = False) -> str:
    """Counts by group in Markdown: false negatives of the right pairs, false positives of the wrong ones."""
    counts: dict[str, Counter[str]] = {}
    for pair in pairs:
        reason = pair.grade().reason
        for name, equal in (("ours", reason == "equal"), ("plain", pair.plain())):
            for group in (pair.group, "all"):
                counts.setdefault(group, Counter())[f"{name} {pair.right} {equal}"] += 1
        if show and (reason == "equal") != pair.right:
            print(f"{'right' if pair.right else 'wrong'}, graded {reason}: {pair.answer}  <-  {pair.written}")
    lines = ["| | right | ours: missed | math-verify: missed | wrong | ours: accepted | math-verify: accepted |"]
    lines.append("|---|---|---|---|---|---|---|")
    for group in [*(name for name in counts if name != "all"), "all"]:
        cells = [group]
        for right in (True, False):
            failed = [counts[group][f"{name} {right} {not right}"] for name in ("ours", "plain")]
            total = counts[group][f"ours {right} True"] + counts[group][f"ours {right} False"]
            cells += [str(total), *(f"{n} ({n / total:.1%})" if total and n else str(n) for n in failed)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


LATEX = r"""
\frac \sqrt \text{ \left( \right) \pm \cdot \times 10^ e \% \$ \\ \{ \} ^ _ { } ( ) [ ] , ; . = < > + - * / ! | & ~ $
0 1 7 12 999 1e9 x y i and or yes B \circ cm meters \begin{pmatrix} \infty nan True \boxed{
""".split()  # noqa: SIM905 - as a list it fills a screen


def fuzz(count: int, *, seed: int = 0) -> tuple[Counter[str], list[float]]:
    """Reasons and seconds of ``count`` random answers to the references of ``FORMS``."""
    r, reasons, seconds = random.Random(seed), Counter[str](), []
    pieces = [*LATEX, "\0", "\ud800", "\u202e", "\u0665", "\u00bd", "\u2212", " ", "\n"]
    forms = read_forms()
    for _ in range(count):
        pair = r.choice(forms)
        cut = r.randrange(len(pair.written) + 1)
        noise = "".join(r.choices(pieces, k=r.randint(0, 6))) * r.choice([1] * 19 + [50])
        written = r.choice([noise, pair.written[:cut] + noise + pair.written[cut:], pair.written[:cut]])
        start = time.monotonic()
        reasons[Pair("", pair.answer, written, True, pair.kind, pair.unit, pair.tolerance).grade().reason] += 1
        seconds.append(time.monotonic() - start)
    return reasons, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, help="a JSON Lines file of pairs, counted by benchmark")
    parser.add_argument("--show", action="store_true", help="print what is graded otherwise")
    parser.add_argument("--fuzz", type=int, default=0, metavar="N", help="grade N random answers instead")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    if args.fuzz:
        reasons, seconds = fuzz(args.fuzz, seed=args.seed)
        print(f"{args.fuzz:,} answers in {sum(seconds):.0f} s, the slowest {max(seconds):.1f} s: {dict(reasons)}")
        return
    print(table(read_forms(), show=args.show))
    if args.pairs and args.pairs.exists():
        print(f"\n{table(read_pairs(args.pairs), show=args.show)}")
    else:
        print(f"\nno pairs: {f'{args.pairs} does not exist' if args.pairs else 'name a file by --pairs'}")


if __name__ == "__main__":
    main()
