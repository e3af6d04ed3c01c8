"""A real pretrained pair on the map: what its student is like, and what a call can mend (docs/real-models.md).

    python benchmarks/real_study.py --student $STUDENT --teacher $TEACHER --out runs/real-study

Neither model is trained. Three solved problems come before each question, so that answers are short and end. The steps
are ``answers``, ``cells``, ``dials`` and ``rule``; --only chooses some. Each goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
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
from relaylab.evaluation.interventions import COLUMNS, auroc, dials_of, interventions, uncertain_places
from relaylab.evaluation.score import recorded, score_traces
from relaylab.evaluation.stats import mean, paired
from relaylab.files import bind_folder, plain, write_json, write_whole
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.relay import Relay
from relaylab.tasks.suites import Problem
from relaylab.trace import TEACHER, Trace, TraceWriter

SUITES = ("savings", "shopping", "sharing")  # those that a 1.5B can do
SHOTS = (("savings", 0), ("shopping", 0), ("sharing", 1))  # training problems
ENTROPY = (-1, 0.05, 0.6, 1.2, np.inf)  # edges of the cells, nats of the student's entropy
DIVERGENCE = (-1, 0.05, 0.5, 2, np.inf)  # and of KL(student || teacher)
LENGTHS = (1, 4, 16)  # tokens of an intervention
A_CELL = 30  # tokens of each cell
CHUNK = 64  # interventions that are kept together
MAX_TOKENS = 128
STEPS = ("answers", "cells", "dials", "rule")


def with_shots(problem: Problem, shots: Sequence[tuple[str, str]]) -> Problem:
    """The problem behind solved ones, as a conversation."""
    turns = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in shots]
    return replace(problem, history=tuple(message for turn in turns for message in turn))


def suite_questions(count: int) -> list[Problem]:
    """Test problems of the plain world, ``count`` of each suite."""
    solved = [rl.problem(suite, i, split="train", world="plain") for suite, i in SHOTS]
    shots = [(p.question, p.solution) for p in solved]
    drawn = [rl.problem(s, i, world="plain") for s in SUITES for i in range(count)]
    return [with_shots(p, shots) for p in drawn]


def kept(out: Path, traces: Sequence[Trace], relay: Relay, places: Sequence[Sequence[int]], n: int) -> pd.DataFrame:
    """Interventions, in files of ``CHUNK`` that are not made again. Their traces are counted as in ``traces``."""
    out.mkdir(parents=True, exist_ok=True)
    at = [(k, position) for k, positions in enumerate(places) for position in positions]
    parts = []
    for first in tqdm(range(0, len(at), CHUNK), desc=out.name):
        path, some = out / f"{first:05}.csv", at[first : first + CHUNK]
        if not path.exists():
            here = [[p for k, p in some if k == number] for number in range(len(traces))]
            write_whole(path, interventions(traces, relay, here, n=n, progress=False).to_csv(index=False))
        parts.append(pd.read_csv(path, keep_default_na=False))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


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
    frame.to_csv(out / "cells.csv", index=False)
    table = frame.groupby(["cell", "n"])[["same", "mended", "broken"]].mean()
    print(table.assign(forks=frame.groupby(["cell", "n"]).size()).round(2).to_string())
    told(frame)


def told(frame: pd.DataFrame) -> None:
    """Of each length: what stays, weighted to all tokens; and which signal knows where an intervention matters."""
    for n, rows in frame.groupby("n"):
        high, changed = rows["entropy"] > 0.6, ~rows["same"].astype(bool).to_numpy()
        same = [np.average(rows["same"][part], weights=rows["weight"][part]) for part in (high, ~high)]
        known = [auroc(rows[name].to_numpy(float), changed) for name in ("entropy", "divergence")]
        wrong = ~rows["before"].astype(bool)
        print(f"n={n}: unchanged above 0.6 nats {same[0]:.2f}, below {same[1]:.2f}")
        print(f"    AUROC of a change: entropy {known[0]:.2f}, divergence {known[1]:.2f}")
        mended, broken = int(rows["mended"].sum()), int(rows["broken"].sum())
        print(f"    mended {mended} of {wrong.sum()}, broken {broken} of {(~wrong).sum()}")


def dials(out: Path, traces: list[Trace], relay: Relay, wrong: int, seed: int) -> None:
    """h, c and the AUROCs, as ``relaylab map`` measures them of the embedded worlds. ``wrong``: answers for c."""
    lost = [k for k, t in enumerate(traces) if not t.correct][:wrong]
    chosen = [t for k, t in enumerate(traces) if t.correct or k in lost]
    uncertain = kept(out / "dials-uncertain", chosen, relay, uncertain_places(chosen, seed=seed), 8)
    everywhere = [[] if t.correct else range(len(t.completion_ids) - 1) for t in chosen]
    forks = kept(out / "dials-everywhere", chosen, relay, everywhere, 8)
    found = asdict(dials_of(chosen, relay.engine, uncertain, forks, seed=seed))
    write_json(out / "dials.json", {relay.engine.name: found})
    print(json.dumps(found | {"interventions": len(uncertain) + len(forks)}, indent=1))


def rule(out: Path, tests: list[Problem], pair: rl.Pair, alone: list[Trace]) -> None:
    """4 tokens of the teacher above 1.2 nats, on the test questions, silent and written. A fifth is for the player."""
    for how, write in (("silent", False), ("written", True)):
        traces = pair.decode(
            tests, call_rule=rl.CallWhenUnsure(1.2, 4), write_call=write, record=True, out=out / f"rule-{how}.jsonl",
            max_tokens=MAX_TOKENS, batch_size=34,
        )  # fmt: skip
        right, before = (pd.Series({t.id: float(bool(t.correct)) for t in some}) for some in (traces, alone))
        before = before[right.index]  # a file has answers in the order in which they ended
        share = sum(t.count(TEACHER) for t in traces) / sum(len(t.completion_ids) for t in traces)
        print(
            f"{how}: right {mean(right)}, minus the student {paired(right, before)}, {100 * share:.1f} % teacher tokens"
        )
        print(f"    mended {int((right > before).sum())}, broken {int((right < before).sum())}", flush=True)
        if not write:
            with TraceWriter(out / "recorded.jsonl") as writer:
                writer.replace(recorded(pair.teacher, traces[2::5], against=pair.student))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=34, help="questions of each of three suites")
    parser.add_argument("--wrong", type=int, default=24, help="wrong answers that are forked at every token")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", default=STEPS, choices=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    made_by = {k: str(v) for k, v in vars(asked).items() if k not in ("out", "threads", "only")}
    bind_folder(asked.out, plain(made_by))
    torch.set_num_threads(asked.threads)
    student, large = (load_engine(path, dtype=getattr(torch, asked.dtype)) for path in (asked.student, asked.teacher))
    teacher, tests = LocalTeacher(large), suite_questions(asked.count)
    began = time.time()
    for who, engine in (("student", student), ("teacher", large)) if "answers" in asked.only else ():
        traces = rl.Pair(engine, rl.NoTeacher()).decode(
            tests, out=asked.out / f"suites-{who}.jsonl", record=True, max_tokens=MAX_TOKENS, batch_size=34
        )
        ended, high = mean([t.stop == "end" for t in traces]), np.concatenate([t.entropies for t in traces]) > 0.6
        right = mean([bool(t.correct) for t in traces])
        print(f"{who}: right {right}, ended {ended}, {high.size / len(traces):.0f} tokens an answer,")
        print(f"    {100 * high.mean():.1f} % of them above 0.6 nats; {time.time() - began:.0f} s", flush=True)
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
