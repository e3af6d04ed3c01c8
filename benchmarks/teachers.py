"""Two teachers of one student: teach a trained student to name one in its calls, and count whom it asks.

    python benchmarks/teachers.py name --out runs/named
    python benchmarks/teachers.py count runs/two-eval/traces/0/relay*.jsonl

``name`` goes on from a student that knows when to call. It answers training problems at temperature 1, each with a
teacher that is drawn evenly. Each command in these responses gets the name of the teacher that answered. The commands
are learned as in the warm-up by self-distillation (``distill_loss``). ``count`` reads traces with several teachers:
calls and tokens are means of a response, and a last table says whom the students of all files ask together. FLOPs are
those of ``costs_by_teacher``; *large alone* is an answer of the same length by the largest teacher.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import set_seed
from trl.trainer.sft_config import SFTConfig

from relaylab.cost import ModelPrices, Prices, alone, costs, usage
from relaylab.cost_by_teacher import costs_by_teacher
from relaylab.engine.engine import Engine
from relaylab.engine.load import load_model, relay_defaults
from relaylab.evaluation.stats import interval
from relaylab.relay.config import RelayConfig
from relaylab.relay.pair import Pair, load_teacher
from relaylab.relay.teachers import NamedTeachers
from relaylab.tasks.suites import TAUGHT, Problem, mixture
from relaylab.trace import COMMAND, TEACHER, Trace, read_traces
from relaylab.training.policy_model import save_student
from relaylab.training.warmup import DistillTrainer
from relaylab.training.warmup_data import NO_LOSS

TEACHERS = "small=wordy/student large=teacher"


def named_rows(
    student: Engine, teachers: NamedTeachers, problems: list[Problem], caps: dict[str, Any], seed: int
) -> Dataset:
    """The student's own relays with a name in each command; a teacher for each problem is drawn evenly."""
    rows, drawn = [], random.Random(seed).choices(teachers.names, k=len(problems))
    for name in teachers.names:
        own = [problem for problem, who in zip(problems, drawn) if who == name]
        pair = Pair(student, teachers.teachers[name], caps)
        for trace in pair.decode(own, temperature=1.0, batch_size=128, progress=False):
            calls, row = (
                {c.start: c.requested or 0 for c in trace.answered},
                [(i, NO_LOSS, 0) for i in trace.prompt_ids],
            )
            for at, (token, source) in enumerate(zip(trace.completion_ids, trace.source)):
                row += [(i, i, 1) for i in student.text.call(calls[at], name)] if at in calls else []
                row += [(token, NO_LOSS if source == TEACHER else token, 0)] if source != COMMAND else []
            ids, labels, command = map(list, zip(*row))
            rows.append({"input_ids": ids, "labels": labels, "command": command})
    return Dataset.from_list(rows)


def name(args: argparse.Namespace) -> None:
    set_seed(args.seed)
    model, tokenizer = load_model(args.student, device="cpu")
    student, reference = Engine(model, tokenizer, name=args.student), copy.deepcopy(model)
    pad_id: Any = tokenizer.pad_token_id
    teachers = load_teacher(args.teacher)
    if not isinstance(teachers, NamedTeachers):
        raise SystemExit(f"--teacher {args.teacher!r} is one; write several with names, as {TEACHERS!r}")
    problems = list(islice(mixture(seed=3, suites=TAUGHT), args.count))
    caps: dict[str, Any] = relay_defaults(args.student) | {"max_tokens": 160}
    rows = named_rows(student, teachers, problems, caps, args.seed)
    settings: dict[str, Any] = dict(
        max_steps=args.steps, per_device_train_batch_size=32, learning_rate=args.learning_rate, seed=args.seed,
        lr_scheduler_type="cosine", warmup_steps=20, weight_decay=0.0, use_cpu=True, bf16=False, max_length=None,
        save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False, logging_steps=20,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        trainer = DistillTrainer(
            model.requires_grad_(True), reference, pad_id, tag=student.text.call(1, teachers.names[0])[0], keep=4.0,
            args=SFTConfig(output_dir=work, **settings), train_dataset=rows, processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
    save_student(model, tokenizer, args.student, args.out, RelayConfig(**caps))
    print(f"{len(rows)} responses, {sum(any(r['command']) for r in rows.to_list())} with a call: {args.out}")


@cache
def size(model: str) -> ModelPrices:
    return ModelPrices(parameters=load_model(model)[0].num_parameters())


def counted(traces: list[Trace], student: str) -> pd.DataFrame:
    """One row per trace: what it is worth, and what it asked of each teacher."""
    teachers = {name: size(teacher["teacher"]) for name, teacher in traces[0].config["teachers"].items()}
    largest = max(teachers.values(), key=lambda prices: prices.parameters)
    prices = Prices(student=size(student), teacher=largest)
    table = pd.DataFrame({"suite": [t.problem["suite"] for t in traces]})
    table["right %"] = [100.0 * bool(t.correct) for t in traces]
    for who in teachers:
        calls = [[c for c in t.answered if c.to == who] for t in traces]
        table[f"calls to {who}"] = [len(own) for own in calls]
        table[f"tokens of {who}"] = [sum(c.delivered for c in own) for own in calls]
    table["tokens"] = [len(t.completion_ids) for t in traces]
    table["MFLOP"] = costs_by_teacher(traces, prices, teachers).flops / 1e6
    table["large alone"] = costs(alone(usage(traces), "teacher"), prices).flops / 1e6
    return table


def together(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One row per suite: whom several students ask. 95 %; all students' answers to a problem are drawn together."""
    rows = []
    for suite in tables[0]["suite"].unique():
        own = [table[table["suite"] == suite] for table in tables]
        a = {name: np.array([table[name] for table in own]) for name in own[0] if name != "suite"}  # (student, problem)
        calls = {name: values for name, values in a.items() if name.startswith("calls to ")}
        every, row = sum(calls.values()), {"suite": suite, "calls": int(sum(values.sum() for values in calls.values()))}
        row["right %"] = str(interval(lambda i, right=a["right %"]: right[:, i].mean(), len(own[0])))
        for name, to in calls.items():
            share = lambda i, to=to, every=every: 100 * to[:, i].sum() / max(1, every[:, i].sum())  # noqa: E731
            row[f"% of the {name}"] = str(interval(share, len(own[0]))) if every.sum() else "-"
        rows.append(row)
    return pd.DataFrame(rows).set_index("suite")


def count(args: argparse.Namespace) -> None:
    tables = [counted(list(read_traces(path)), args.student) for path in args.traces]
    for path, table in zip(args.traces, tables):
        means = table.groupby("suite", sort=False).mean()
        means.loc["all"] = table.drop(columns="suite").mean()
        print(f"{path}\n{means.round(2).to_string()}\n")
    print(f"{len(tables)} together\n{together(tables).to_string()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("name")
    command.add_argument("--out", type=Path, required=True, help="folder of the student that names teachers")
    command.add_argument("--student", default="relay", help="a trained student")
    command.add_argument("--teacher", default=TEACHERS, help="several, with names")
    command.add_argument("--count", type=int, default=480, help="training problems")
    command.add_argument("--steps", type=int, default=150)
    command.add_argument("--learning-rate", type=float, default=3e-3)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=name)
    command = commands.add_parser("count")
    command.add_argument("traces", nargs="+", type=Path, help="files of traces with several teachers")
    command.add_argument("--student", default="student", help="the model whose size the student has")
    command.set_defaults(run=count)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
