"""What trained students have learned about calling, on test problems that no model was trained on.

    python benchmarks/learning.py relay                                     # the shipped student
    python benchmarks/learning.py runs/relay-{0,1,2}/student --count 100    # three seeds of a run

Greedy, with the caps of the training. The untouched student, the teacher, each trained student with its teacher, and
each with calls forbidden answer the same problems; traces go to --out and are not decoded twice. Intervals: 95 %, from
a bootstrap over problems; for several students their answers to one problem are drawn together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from relaylab.engine.load import load_engine
from relaylab.evaluation.learning import Traces, calls_at, hard_kinds, step_accuracy
from relaylab.evaluation.stats import interval
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import Pair, load_teacher
from relaylab.relay.teachers import NoTeacher
from relaylab.tasks.suites import SUITES, Problem, problems
from relaylab.trace import TEACHER, Trace, to_frame
from relaylab.training.config import make_config


def table(traces: Sequence[Trace]) -> str:
    """Accuracy, teacher share and calls by suite."""
    rows = []
    for suite, f in to_frame(traces).groupby("suite", sort=False):
        right, share = f["correct"].astype(float).mean(), f["teacher_tokens"].sum() / f["tokens"].sum()
        calls, n = f["calls"].mean(), f["mean_n"].mean()
        rows.append(f"| {suite} | {100 * right:.1f} | {100 * share:.2f} | {calls:.2f} | {n:.1f} |")
    return "\n".join(["| suite | correct % | teacher tokens % | calls | mean n |", "|---" * 5 + "|", *rows])


def measures(
    relay: Traces | Sequence[Traces], alone: Traces, teacher: Traces, free: Traces | Sequence[Traces], *, seed: int = 0
) -> pd.DataFrame:
    """The figures of a trained student, or of several (one per seed) together: name, value, low, high; shares in 0..1.

    Args:
        relay: traces of one student, or a list of those of several; all traces are of the same problems in one order.
        alone: of the untouched student.
        teacher: of the teacher.
        free: as ``relay``, with calls forbidden.
        seed: of the bootstrap, which draws problems and with each all students' answers.

    Raises:
        ValueError: if the problems differ, or the teacher is not better than the student.
    """
    relays, frees = ([t] if isinstance(t[0], Trace) else list(t) for t in (relay, free))
    ids = [t.id for t in alone]
    if len(relays) != len(frees) or any([t.id for t in other] != ids for other in (*relays, teacher, *frees)):
        raise ValueError("the traces are not of the same problems in the same order")
    kinds = hard_kinds(alone)

    def column(students: Sequence[Traces], value: Callable[[Trace], float]) -> np.ndarray:  # (students, problems)
        return np.array([[value(t) for t in traces] for traces in students], dtype=float)

    a, b, r, f = (column(x, lambda t: bool(t.correct)) for x in ([alone], [teacher], relays, frees))
    written, length = column(relays, lambda t: t.count(TEACHER)), column(relays, lambda t: len(t.completion_ids))
    called, calls = column(relays, lambda t: bool(t.answered)), column(relays, lambda t: len(t.answered))
    hits = column(relays, lambda t: sum(calls_at(t, kinds)))
    if b.mean() <= a.mean():
        raise ValueError("the teacher is not better than the student alone; there is no gap to recover")

    def share(part: np.ndarray, whole: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda i: part[:, i].sum() / max(1, whole[:, i].sum())

    figures = {
        "accuracy, student alone (untouched)": lambda i: a[:, i].mean(),
        "accuracy, trained student with calls forbidden": lambda i: f[:, i].mean(),
        "accuracy, relay": lambda i: r[:, i].mean(),
        "accuracy, teacher alone": lambda i: b[:, i].mean(),
        "gap recovered": lambda i: (r[:, i].mean() - a[:, i].mean()) / (b[:, i].mean() - a[:, i].mean()),
        "teacher tokens of all tokens": share(written, length),
        "mean call ratio of a response": lambda i: (written[:, i] / length[:, i]).mean(),
        "called, of problems that it fails alone": share(called * (1 - f), 1 - f),
        "called, of problems that it solves alone": share(called * f, f),
        "calls at a hard step": share(hits, calls),
    }
    rows = [(name, interval(statistic, len(ids), seed=seed)) for name, statistic in figures.items()]
    return pd.DataFrame([{"name": n, "value": x.value, "low": x.low, "high": x.high} for n, x in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", help="names or folders of trained students")
    parser.add_argument("--untouched", default="student")
    parser.add_argument("--teacher", default="teacher")
    parser.add_argument("--suites", nargs="+", default=list(SUITES))
    parser.add_argument("--count", type=int, default=100, help="test problems per suite")
    parser.add_argument("--start", type=int, default=0, help="of a suite: the number of its first problem")
    parser.add_argument("--settings", default="embedded/relay", help="of the training; its caps hold here too")
    parser.add_argument("--out", type=Path, help="traces; runs/learning and the name of the settings")
    args = parser.parse_args()
    args.out = args.out or Path("runs/learning", args.settings.replace("/", "-"))
    chosen: list[Problem] = [p for s in args.suites for p in problems(s, args.count, start=args.start)]
    teacher, caps = load_teacher(args.teacher), make_config(args.settings, output_dir="none").relay

    def decode(name: str, pair: Pair) -> list[Trace]:
        path = args.out / f"{name.strip('/').replace('/', '_')}.jsonl"
        return pair.decode(chosen, out=path, config=caps, batch_size=128, progress=False)

    alone = decode("alone", Pair(load_engine(args.untouched), NoTeacher()))
    assert isinstance(teacher, LocalTeacher)
    best = decode("teacher", Pair(teacher.engine, NoTeacher()))
    print("steps that the untouched student gets right:", {k: f"{v:.2f}" for k, v in step_accuracy(alone).items()})
    print("hard steps:", ", ".join(sorted(hard_kinds(alone))))
    relays, frees = [], []
    for name in args.students:
        engine = load_engine(name)
        relays.append(decode(f"relay-{name}", Pair(engine, teacher)))
        frees.append(decode(f"free-{name}", Pair(engine, NoTeacher())))
        print(f"\n## {name}\n\n{table(relays[-1])}\n")
        print(measures(relays[-1], alone, best, frees[-1]).round(3).to_string(index=False))
    if len(args.students) > 1:
        # One problem after another, the students' answers together: the bootstrap draws problems, not answers.
        print(f"\n## all {len(relays)} together\n")
        print(measures(relays, alone, best, frees).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
