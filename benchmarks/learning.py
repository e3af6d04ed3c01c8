"""What trained students have learned about calling, on test problems that no model was trained on.

    python benchmarks/learning.py relay                                     # the shipped student
    python benchmarks/learning.py runs/relay-{0,1,2}/student --count 100    # three seeds of a run

Greedy, with the caps of the training. The untouched student, the teacher, each trained student with its teacher, and
each with calls forbidden answer the same problems; traces go to --out and are not decoded twice. Intervals: 95 %, from
a bootstrap over problems; for several students their answers to one problem are drawn together.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from relaylab.engine.load import load_engine
from relaylab.evaluation.learning import hard_kinds, measures, step_accuracy
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import Pair, load_teacher
from relaylab.relay.teachers import NoTeacher
from relaylab.tasks.suites import SUITES, Problem, problems
from relaylab.trace import Trace, to_frame
from relaylab.training.config import make_config


def table(traces: Sequence[Trace]) -> str:
    """Accuracy, teacher share and calls by suite."""
    rows = []
    for suite, f in to_frame(traces).groupby("suite", sort=False):
        right, share = f["correct"].astype(float).mean(), f["teacher_tokens"].sum() / f["tokens"].sum()
        calls, n = f["calls"].mean(), f["mean_n"].mean()
        rows.append(f"| {suite} | {100 * right:.1f} | {100 * share:.2f} | {calls:.2f} | {n:.1f} |")
    return "\n".join(["| suite | correct % | teacher tokens % | calls | mean n |", "|---" * 5 + "|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", help="names or folders of trained students")
    parser.add_argument("--untouched", default="student")
    parser.add_argument("--teacher", default="teacher")
    parser.add_argument("--suites", nargs="+", default=list(SUITES))
    parser.add_argument("--count", type=int, default=100, help="test problems a suite")
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
        print(*measures(relays[-1], alone, best, frees[-1]), sep="\n")
    if len(args.students) > 1:
        # One problem after another, the students' answers together: the bootstrap draws problems, not answers.
        print(f"\n## all {len(relays)} together\n")
        print(*measures(relays, alone, best, frees), sep="\n")


if __name__ == "__main__":
    main()
