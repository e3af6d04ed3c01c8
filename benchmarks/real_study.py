"""A real pretrained pair on the map: what its student is like, and what a call can mend (docs/real-models.md).

    python benchmarks/real_study.py --student $STUDENT --teacher $TEACHER --out runs/real-study

Neither model is trained. Three solved problems come before each question, so that answers are short and end. The steps
are ``questions`` (files for training), ``answers``, ``cells``, ``dials``, ``rule``, ``triggers`` and, with --benchmarks
(a folder with gsm8k.jsonl and gsm8k_train.jsonl), ``gsm8k``; --only chooses some. Each goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

import relaylab as rl
from relaylab.engine.engine import Engine
from relaylab.engine.load import load_engine
from relaylab.evaluation.calibrate import calibrate
from relaylab.evaluation.eval_run import EvalRun, ModelCache
from relaylab.evaluation.interventions import COLUMNS, auroc_interval, dials_of, interventions, uncertain_places
from relaylab.evaluation.score import recorded, score_traces
from relaylab.evaluation.stats import mean, paired, share
from relaylab.evaluation.systems import SYSTEMS, system
from relaylab.evaluation.table import write_table
from relaylab.files import bind_folder, plain, write_json, write_whole
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.relay import Relay
from relaylab.tasks.benchmarks import load_benchmark
from relaylab.tasks.suites import Problem, Split
from relaylab.trace import TEACHER, Trace, TraceWriter

SHOTS = {"savings": 0, "shopping": 0, "sharing": 1}  # suites that a 1.5B can do, and a training problem of each
ENTROPY = (-1, 0.05, 0.6, 1.2, np.inf)  # edges of the cells, nats of the student's entropy
DIVERGENCE = (-1, 0.05, 0.5, 2, np.inf)  # and of KL(student || teacher)
LENGTHS = (1, 4, 16)  # tokens of an intervention
A_CELL = 34  # tokens of each cell
CHUNK = 64  # interventions that are kept together
MAX_TOKENS = 128
GSM8K_TOKENS = 400
# Where triggers may call: quantiles of their signal, at every token or at the first ones of lines
QUANTILES = dict.fromkeys(("entropy", "margin", "r2r"), (0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998)) | {
    "line": (0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
}
UNBOUND = ("out", "threads", "only", "benchmarks", "triggers")  # they decide no answer
STEPS = ("questions", "answers", "cells", "dials", "rule", "triggers", "gsm8k")


def with_shots(problem: Problem, shots: Sequence[tuple[str, str]]) -> Problem:
    """The problem behind solved ones, as a conversation."""
    turns = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in shots]
    return replace(problem, history=tuple(message for turn in turns for message in turn))


def suite_questions(indices: Sequence[int], split: Split = "test") -> list[Problem]:
    """Problems of the plain world, those with these indices of each suite."""
    solved = [rl.problem(suite, i, split="train", world="plain") for suite, i in SHOTS.items()]
    shots = [(p.question, p.solution) for p in solved]
    return [with_shots(rl.problem(s, i, split=split, world="plain"), shots) for s in SHOTS for i in indices]


def write_questions(path: Path, some: Sequence[Problem]) -> None:
    """Problems as a file for ``relaylab warmup``, ``train`` and ``evaluate``."""
    rows = ({"id": p.id, "messages": p.messages(), "answer": p.answer} for p in some)
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def gsm8k_questions(folder: Path, count: int) -> list[Problem]:
    """``count`` test questions of GSM8K behind three of its training questions with their solutions."""
    solved = load_benchmark("gsm8k_train", path=folder, limit=3)
    shots = [
        (p.question, re.sub(r"<<.*?>>", "", p.solution).split("####")[0] + f"\\boxed{{{p.answer}}}") for p in solved
    ]
    return [with_shots(p, shots) for p in load_benchmark("gsm8k", path=folder, limit=count)]


def kept(out: Path, traces: Sequence[Trace], relay: Relay, places: Sequence[Sequence[int]], n: int) -> pd.DataFrame:
    """Interventions, in files of ``CHUNK``; those that are there are not made again. Traces count as in ``traces``."""
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(out.glob("*.csv"))
    parts = [pd.DataFrame(columns=list(COLUMNS))] + [pd.read_csv(path, keep_default_na=False) for path in files]
    done = {place for part in parts for place in zip(part["trace"], part["position"])}
    wanted = [(k, position) for k, positions in enumerate(places) for position in positions]
    missing = [place for place in wanted if place not in done]
    for first in tqdm(range(0, len(missing), CHUNK), desc=out.name):
        some = missing[first : first + CHUNK]
        here = [[p for k, p in some if k == number] for number in range(len(traces))]
        path = out / f"{len(files) + first // CHUNK:05}.csv"
        write_table(interventions(traces, relay, here, n=n, progress=False), path)
        parts.append(pd.read_csv(path, keep_default_na=False))
    found = pd.concat(parts[1:] or parts).set_index(["trace", "position"])
    return found.loc[[place for place in wanted if place in found.index]].reset_index()[list(COLUMNS)]


def drawn_cells(traces: Sequence[Trace], student: Engine, teacher: Engine, seed: int) -> pd.DataFrame:
    """Tokens of the traces, drawn evenly from cells of entropy and divergence; ``weight``: how many each stands for."""
    scored = score_traces(teacher, traces, against=student)
    scored["doubt"] = [traces[k].entropies[i] for k, i in zip(scored["trace"], scored["position"])]
    scored["cell"] = list(zip(pd.cut(scored["doubt"], ENTROPY).astype(str),
                              pd.cut(scored["divergence"], DIVERGENCE).astype(str)))  # fmt: skip
    inner = scored[[i < len(traces[k].completion_ids) - 1 for k, i in zip(scored["trace"], scored["position"])]]
    inner = inner.assign(size=inner.groupby("cell")["cell"].transform("size"))
    drawn = inner.sample(frac=1, random_state=seed).groupby("cell").head(A_CELL).sort_values(["trace", "position"])
    return drawn.assign(weight=drawn["size"] / drawn.groupby("cell")["cell"].transform("size"))


def cells(out: Path, traces: list[Trace], relay: Relay, seed: int) -> None:
    """What 1, 4 and 16 tokens of the teacher change, by the student's entropy and the divergence of the two."""
    assert isinstance(relay.teacher, LocalTeacher)
    drawn = drawn_cells(traces, relay.engine, relay.teacher.engine, seed)
    places = [drawn.loc[drawn["trace"] == k, "position"].tolist() for k in range(len(traces))]
    made = pd.concat(kept(out / f"cells-{n}", traces, relay, places, n) for n in LENGTHS)
    frame = made.merge(drawn[["trace", "position", "divergence", "cell", "weight"]], on=["trace", "position"])
    frame["mended"] = ~frame["before"].astype(bool) & frame["after"].astype(bool)
    frame["broken"] = frame["before"].astype(bool) & ~frame["after"].astype(bool)
    write_table(frame, out / "cells.csv")
    table = frame.groupby(["cell", "n"])[["same", "mended", "broken"]].mean()
    print(table.assign(forks=frame.groupby(["cell", "n"]).size()).round(2).to_string())
    told(frame)


def told(frame: pd.DataFrame) -> None:
    """Of each length: what stays, and which signal knows where an intervention matters; weighted to all tokens."""
    for n, rows in frame.groupby("n"):
        rows = rows.assign(kept=rows["same"].astype(float) * rows["weight"], right=rows["before"].astype(bool))
        for where, part in (("above", rows[rows["entropy"] > 0.6]), ("below", rows[rows["entropy"] <= 0.6])):
            sums = part.groupby("trace")[["kept", "weight"]].sum()
            print(f"n={n}: unchanged {where} 0.6 nats {share(sums['kept'], sums['weight'])}, {len(part)} tokens")
        changed = ~rows["same"].astype(bool).to_numpy()
        for name in ("entropy", "divergence"):
            signal, answer, weight = rows[name].to_numpy(float), rows["trace"].to_numpy(), rows["weight"].to_numpy()
            known, drawn = auroc_interval(signal, changed, answer, weight), auroc_interval(signal, changed, answer)
            print(f"    AUROC of a change by {name}: {known}, among the drawn {drawn}, {changed.sum()} changes")
        for what, part in (("mended", rows[~rows["right"]]), ("broken", rows[rows["right"]])):
            sums = part.assign(part=part[what] * part["weight"]).groupby("trace")[["part", "weight"]].sum()
            print(f"    {what} {share(sums['part'], sums['weight'])}, {part[what].sum()} of {len(part)} drawn")


def dials(out: Path, traces: list[Trace], relay: Relay, wrong: int, seed: int) -> None:
    """h, c and the AUROCs, as ``relaylab map`` measures them of the embedded worlds. ``wrong``: answers for c."""
    lost = [k for k, t in enumerate(traces) if not t.correct][:wrong]
    chosen = [t for k, t in enumerate(traces) if t.correct or k in lost]
    uncertain = kept(out / "dials-uncertain", chosen, relay, uncertain_places(chosen, seed=seed), 8)
    everywhere = [[] if t.correct else range(len(t.completion_ids) - 1) for t in chosen]
    forks = kept(out / "dials-everywhere", chosen, relay, everywhere, 8)
    found = asdict(dials_of(chosen, relay, uncertain, forks, seed=seed))
    write_json(out / "dials.json", {relay.engine.name: found})
    print(json.dumps(found | {"interventions": len(uncertain) + len(forks)}, indent=1))


def teacher_share(traces: Sequence[Trace]) -> str:
    tokens = np.array([(t.count(TEACHER), len(t.completion_ids)) for t in traces])
    return f"teacher tokens {share(tokens[:, 0], tokens[:, 1])}"


def rule(out: Path, tests: list[Problem], pair: rl.Pair, alone: list[Trace]) -> None:
    """4 tokens of the teacher above 1.2 nats, on the test questions, silent and written. A fifth is for the player."""
    for how, write in (("silent", False), ("written", True)):
        traces = pair.decode(
            tests, call_rule=rl.CallWhenUnsure(1.2, 4), write_call=write, record=True, out=out / f"rule-{how}.jsonl",
            max_tokens=MAX_TOKENS, batch_size=34,
        )  # fmt: skip
        right, before = (pd.Series({t.id: float(bool(t.correct)) for t in some}) for some in (traces, alone))
        before = before[right.index]  # a file has answers in the order in which they ended
        print(f"{how}: right {mean(right)}, minus the student {paired(right, before)}, {teacher_share(traces)}")
        print(f"    mended {int((right > before).sum())}, broken {int((right < before).sum())}", flush=True)
        shared = pair.teacher.fingerprint == pair.student.text.fingerprint
        if shared and not write:
            with TraceWriter(out / "recorded.jsonl") as writer:
                writer.replace(recorded(pair.teacher, traces[2::5], against=pair.student))


def triggers(out: Path, tests: list[Problem], asked: argparse.Namespace) -> None:
    """Triggers at budgets, silent and written: thresholds of 36 training questions, figures of the test questions.

    The router ``r2r`` learns from other training questions before.
    """
    options = {"dtype": getattr(torch, asked.dtype)}
    training, learned = (suite_questions(some, "train") for some in (range(100, 112), range(140, 174)))
    models = ModelCache(str(asked.teacher), learned, MAX_TOKENS, options, untrained=str(asked.student), keep=out)
    run = EvalRun(models, tests, out, rl.RelayConfig(max_tokens=MAX_TOKENS), asked.seed, batch_size=34)
    alone = np.array([float(bool(t.correct)) for t in run.traces(SYSTEMS["student"])])
    for trigger, write in itertools.product(asked.triggers, (False, True)):
        chosen = calibrate(
            training, out / f"calibrated-{trigger}{'-written' if write else ''}", student=models.untrained,
            teacher=models.teacher, lengths=(4,), triggers=(trigger,), quantiles=QUANTILES[trigger], write=write,
            max_tokens=MAX_TOKENS, batch_size=36, routers=out, router_problems=learned if trigger == "r2r" else (),
            **options,
        )  # fmt: skip
        print(chosen.to_string(), flush=True)
        for method in dict.fromkeys(chosen["method"]):
            traces = run.traces(system(method))
            right = np.array([float(bool(t.correct)) for t in traces])
            mended, broken = int((right > alone).sum()), int((right < alone).sum())
            print(f"{method}: right {mean(right)}, {teacher_share(traces)}, minus the student")
            print(f"    {paired(right, alone)}; mended {mended}, broken {broken}", flush=True)


def answers(path: Path, who: str, engine: Engine, tests: list[Problem], max_tokens: int) -> None:
    """A model alone."""
    began, pair = time.time(), rl.Pair(engine, rl.NoTeacher())
    traces = pair.decode(tests, out=path, record=True, max_tokens=max_tokens, batch_size=34)
    high = [int((np.array(t.entropies, float) > 0.6).sum()) for t in traces]
    frame = pd.DataFrame([(bool(t.correct), t.stop == "end", len(t.completion_ids)) for t in traces], dtype=float)
    right, ended, lengths = (frame[k] for k in frame)
    print(f"{who}: right {mean(right)}, ended {mean(ended)}, tokens per answer {mean(lengths)},")
    print(f"    of them above 0.6 nats {share(np.array(high), lengths)}")
    print(f"    {time.time() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--benchmarks", type=Path, help="a folder with gsm8k.jsonl and gsm8k_train.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=34, help="questions of each of three suites")
    parser.add_argument("--wrong", type=int, default=48, help="wrong answers that are forked at every token")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--triggers", nargs="+", default=list(QUANTILES), choices=QUANTILES)
    parser.add_argument("--only", nargs="+", default=STEPS, choices=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if "gsm8k" in asked.only and asked.only is not STEPS and not asked.benchmarks:
        parser.error("gsm8k needs --benchmarks: a folder with gsm8k.jsonl and gsm8k_train.jsonl")
    made_by = {k: str(v) for k, v in vars(asked).items() if k not in UNBOUND}
    bind_folder(asked.out, plain(made_by))
    torch.set_num_threads(asked.threads)
    tests = suite_questions(range(asked.count))
    if "questions" in asked.only:
        write_questions(asked.out / "test.jsonl", tests)
        write_questions(asked.out / "train.jsonl", [p for i in range(200, 300) for p in suite_questions([i], "train")])
    if not {*asked.only} - {"questions"}:
        return
    student, large = (load_engine(path, dtype=getattr(torch, asked.dtype)) for path in (asked.student, asked.teacher))
    teacher = LocalTeacher(large)
    began = time.time()
    both = (("student", student), ("teacher", large))
    for who, engine in both if "answers" in asked.only else ():
        answers(asked.out / f"suites-{who}.jsonl", who, engine, tests, MAX_TOKENS)
    if asked.benchmarks and "gsm8k" in asked.only:
        for who, engine in both:
            answers(asked.out / f"gsm8k-{who}.jsonl", who, engine, gsm8k_questions(asked.benchmarks, 100), GSM8K_TOKENS)
    if "triggers" in asked.only:
        triggers(asked.out / "triggers", tests, asked)
    if not {"cells", "dials", "rule"} & set(asked.only):
        return
    alone = [t for t in rl.read_traces(asked.out / "suites-student.jsonl") if t.stop == "end"]
    relay = Relay(student, teacher, rl.RelayConfig(max_tokens=MAX_TOKENS), batch_size=CHUNK)
    if "cells" in asked.only:
        cells(asked.out, alone, relay, asked.seed)
    if "dials" in asked.only:
        dials(asked.out, alone, relay, asked.wrong, asked.seed)
    if "rule" in asked.only:
        rule(asked.out, tests, rl.Pair(student, teacher), [*rl.read_traces(asked.out / "suites-student.jsonl")])
    print(f"{time.time() - began:.0f} s with {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
