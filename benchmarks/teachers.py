"""What a student asks of each of several teachers: accuracy, calls, tokens and FLOPs, from traces.

    relaylab evaluate --teacher "small=A large=B" --methods relay:student=DIR --suite lifelike --out runs/two-eval
    python benchmarks/teachers.py runs/two-eval/traces/0/relay*.jsonl

Calls and tokens are means of a response, by the name in the call. FLOPs are those of ``costs_by_teacher``, with the
parameters of the models that the traces name. *Large alone*: of an answer of the same length by the largest teacher.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

import pandas as pd

from relaylab.cost import ModelPrices, Prices, alone, costs, usage
from relaylab.cost_by_teacher import costs_by_teacher
from relaylab.engine.load import load_model
from relaylab.trace import Trace, read_traces


@cache
def size(name: str) -> ModelPrices:
    return ModelPrices(parameters=load_model(name)[0].num_parameters())


def measured(traces: list[Trace], student: str) -> pd.DataFrame:
    """One row per trace: what it is worth, and what it asked of each teacher."""
    teachers = {name: size(teacher["teacher"]) for name, teacher in traces[0].config["teachers"].items()}
    largest = max(teachers.values(), key=lambda prices: prices.parameters)
    prices = Prices(student=size(student), teacher=largest)
    table = pd.DataFrame({"suite": [t.problem["suite"] for t in traces]})
    table["right %"] = [100.0 * bool(t.correct) for t in traces]
    for name in teachers:
        calls = [[c for c in t.answered if c.to == name] for t in traces]
        table[f"calls to {name}"] = [len(own) for own in calls]
        table[f"tokens of {name}"] = [sum(c.delivered for c in own) for own in calls]
    table["tokens"] = [len(t.completion_ids) for t in traces]
    table["MFLOP"] = costs_by_teacher(traces, prices, teachers).flops / 1e6
    table["large alone"] = costs(alone(usage(traces), "teacher"), prices).flops / 1e6
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path, help="files of traces with several teachers")
    parser.add_argument("--student", default="lifelike/student", help="the model whose size the student has")
    args = parser.parse_args()
    for path in args.traces:
        table = measured(list(read_traces(path)), args.student)
        means = table.groupby("suite", sort=False).mean()
        means.loc["all"] = table.drop(columns="suite").mean()
        print(f"{path}\n{means.round(2).to_string()}\n")


if __name__ == "__main__":
    main()
