"""The lifelike world: its dials, and every way of asking for help on the same test problems.

    python benchmarks/lifelike.py                          # everything; interrupted, the same command goes on
    python benchmarks/lifelike.py --count 20 --quick       # a look

1. *Dials* of the student: h, c, and how well entropy, margin and a linear probe tell the tokens that need help.
2. *Thresholds*: each trigger gets its best threshold and call length on training problems, at 2, 5 and 10 % teacher
   tokens.
3. *Comparison*: accuracy and teacher tokens with 95 % intervals (bootstrap over problems; the students of several seeds
   count together), and the difference between the relay and each trigger at the budget nearest to the relay's share.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from relaylab.engine.load import load_engine
from relaylab.evaluation.calibrate import calibrate
from relaylab.evaluation.evaluate import evaluate
from relaylab.evaluation.interventions import dials
from relaylab.evaluation.stats import columns, paired, summary
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import Pair
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import NoTeacher
from relaylab.tasks.suites import ALL_SUITES, Problem, level_of, problems

SUITES = tuple(s for s in ALL_SUITES if level_of(s) != "beyond")  # neither model can do those


def drawn(count: int, **options: int | str) -> list[Problem]:
    return [p for suite in SUITES for p in problems(suite, count, **options)]


def percent(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    return frame.assign(**{name: (100 * frame[name]).round(1) for name in names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="lifelike")
    parser.add_argument("--relays", nargs="+", default=["relay", "relay-seed2", "relay-seed3"], help="of this world")
    parser.add_argument("--others", nargs="*", default=["grpo"], help="students without a teacher, of this world")
    parser.add_argument("--count", type=int, default=100, help="test problems per suite")
    parser.add_argument("--start", type=int, default=0, help="number of each suite's first problem")
    parser.add_argument("--quick", action="store_true", help="fewer problems and candidates")
    parser.add_argument("--out", type=Path, help="runs/WORLD")
    args = parser.parse_args()
    torch.set_num_threads(1)
    world, out = args.world, args.out or Path("runs", args.world)
    student, teacher = f"{world}/student", "lifelike/teacher"
    few = 6 if args.quick else 20

    print("## Dials\n")
    pair = Relay(load_engine(student), LocalTeacher(load_engine(teacher)), max_tokens=160, batch_size=128)
    alone = Pair(pair.student, NoTeacher())
    greedy: dict[str, Any] = dict(temperature=0.0, max_tokens=160, batch_size=128, record=True)
    print(dials(alone.decode(drawn(few, start=5000), **greedy), pair), "\n")

    print("## Thresholds\n")
    options: dict[str, Any] = dict(student=student, teacher=teacher, router_problems=drawn(few, split="train", seed=7))
    if args.quick:
        options |= dict(triggers=("entropy", "line", "probe"), lengths=(3, 8), quantiles=(0.8, 0.9, 0.95, 0.98))
    chosen = calibrate(drawn(few, split="train", seed=8), out / "thresholds", **options)
    print(percent(chosen, "accuracy", "teacher_share").to_string(index=False), "\n")

    print("## Comparison\n")
    names = "+".join(f"{world}/{name}" for name in args.relays)
    relay, free = f"relay:student={names}", f"teacher-free:student={names}"
    others = [f"student:student={world}/{name}" for name in args.others]
    methods = ["student", "teacher", relay, free, *others, *chosen["method"].drop_duplicates()]
    table = evaluate(
        methods, drawn(args.count, start=args.start), out / "evaluation", student=student, teacher=teacher,
        training=options["router_problems"], max_tokens=160, batch_size=128,
    )  # fmt: skip
    figures = summary(table).set_index("method")
    shown = figures[["accuracy", "low", "high", "teacher_share", "gap", "gap_low", "gap_high", "calls"]].reset_index()
    print(percent(shown, *shown.columns[1:-1]).to_string(index=False), "\n")
    accuracy = columns(table, "correct")
    ours = relay if relay in accuracy else "relay"  # several students are one method
    for trigger, rows in chosen.groupby("trigger"):
        nearest = rows.loc[(rows["budget"] - figures.loc[ours, "teacher_share"]).abs().idxmin(), "method"]
        difference = paired(accuracy[ours], accuracy[nearest])
        spent = figures.loc[nearest, "teacher_share"]
        print(f"relay - {nearest} (spends {100 * spent:.1f} %): {difference} p={difference.p:.1g}  [{trigger}]")
    by_suite = table.assign(suite=table["id"].str.split("-").str[0])
    calls = by_suite[by_suite["method"] == ours].groupby("suite", sort=False)["calls"].mean()
    print("\ncalls of the relay:", ", ".join(f"{suite} {value:.2f}" for suite, value in calls.items()))
    wide = by_suite.pivot_table(index="suite", columns="method", values="correct", sort=False)
    print("\n", (100 * wide).round(0).to_string())


if __name__ == "__main__":
    main()
