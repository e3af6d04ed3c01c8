"""Calls that mattered: what becomes of an answer from the same prefix without a call, with another n or teacher.

Every answered call is forked (``Relay.forks``) into *arms*, all with the same seeds:

    with          the call as it is; the teacher answers anew
    without       no call here or in the next few tokens; the student may call later, and often does
    alone         no call from here on
    n=20          a call for 20 tokens in its place
    teacher=NAME  the call as it is; another teacher answers it and later calls
    placebo       alone, but the student's own next tokens stand after the command, where the teacher's would be
    student=NAME  another student, such as the untrained one, goes on alone from here

Only the command tells ``placebo`` from ``alone``: their difference is what the command does, without any help of the
teacher. A silent call has no command, so for it the two are equal.
If a call is banned, a wrong answer may be the ban's doing; compare with the arm of another student.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from relaylab.engine.engine import Engine
from relaylab.relay.pair import graded, problem_seed
from relaylab.relay.relay import Relay
from relaylab.relay.sequence import Done
from relaylab.relay.students import Student
from relaylab.relay.teachers import Teacher
from relaylab.tasks.suites import problem_of
from relaylab.trace import STATISTICS, TEACHER, UNFINISHED, Call, Trace

VERDICTS = ("needed", "wasted, right anyway", "wasted, wrong anyway", "harmful")
EFFECT_COLUMNS = (
    "trace", "id", "suite", "level", "call", "first", "start", "arm", "teacher", "n", "samples", "right", "accuracy",
    "delivered", "later_calls", "teacher_tokens", "tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Arm:
    name: str
    relay: Relay
    change: dict[str, Any]  # of ``Relay.forks``; without one the fork begins after the command, and the teacher answers


def call_effects(
    traces: Sequence[Trace], relay: Relay, *, samples: int = 1, lengths: Sequence[int] = (),
    teachers: Sequence[Teacher] = (), students: Sequence[Engine] = (), placebo: bool = False, seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Fork every answered call of graded traces; one row per call and arm (``EFFECT_COLUMNS``).

    A fork in which a model failed is excluded, whatever the relay's ``on_failure``; a warning counts them.
    ``accuracy`` is that of the ``samples`` that count (excluded ones do not). ``delivered``, ``later_calls``,
    ``teacher_tokens`` and ``tokens`` are means of the answers.

    Args:
        traces: decoded from problems, with written or silent calls.
        relay: decodes the forks, with the config of the traces except for the temperature.
        samples: answers per call and arm; at temperature 0 only 1.
        lengths, teachers, students: each adds an arm.
        placebo: add the arm of that name.
        seed: a fork's seed is a function of it, the trace's id and the sample.
        progress: show a bar.

    Raises:
        ValueError: for traces or arms that cannot be compared.
        RuntimeError: where a model failed in every fork.
    """
    arms = _arms(relay, lengths, teachers, students, placebo)
    if samples < 1 or (samples > 1 and not relay.config.temperature and not getattr(relay.teacher, "temperature", 0)):
        raise ValueError(f"samples is {samples}; at least 1, and at temperature 0 no more, since all would be equal")
    calls = [(k, c, t) for k, t in enumerate(traces) for c in t.answered]
    for _, _, trace in calls:
        if "answer" not in trace.problem:
            raise ValueError(f"trace {trace.id!r} holds no problem to grade its forks by; decode with Pair.decode")
    rows, alone = [], list[list[Trace]]()
    with tqdm(total=len(arms) * len(calls) * samples, desc="forking", disable=not progress) as bar:
        for arm in arms:
            every = _answers(arm, calls, samples, seed, bar, alone)
            alone = every if arm.name == "alone" else alone
            for (number, call, trace), answers in zip(calls, every):
                n = None if "forbid" in arm.change else arm.change.get("call", call.requested)
                rows.append((
                    number, trace.id, trace.problem.get("suite"), trace.problem.get("level"), trace.calls.index(call),
                    call is trace.answered[0], call.start, arm.name, arm.relay.teacher.name, n,
                    *_means(answers, call, placebo=arm.name == "placebo"),
                ))  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(EFFECT_COLUMNS))
    told_of_lost(len(arms) * len(calls) * samples, int(frame["samples"].sum()))
    frame["arm"] = pd.Categorical(frame["arm"], categories=[arm.name for arm in arms])
    frame = frame.sort_values(["trace", "start", "arm"], kind="stable", ignore_index=True)
    return frame.astype({"n": "Int64"})


def _arms(
    relay: Relay, lengths: Sequence[int], teachers: Sequence[Teacher], students: Sequence[Engine], placebo: bool
) -> list[_Arm]:
    config = relay.config
    if config.forbid_calls or relay.teacher.name == "none":
        raise ValueError("the relay forbids calls; give one with a teacher, the forks without calls are made here")
    caps = [c for c in (config.fixed_call_tokens, config.max_call_tokens) if c is not None]
    if bad := [n for n in lengths if any(n > c for c in caps) or config.fixed_call_tokens not in (None, n)]:
        raise ValueError(f"a call for {bad[0]} tokens is changed by {config}; choose other lengths or config")
    if other := [e.name for e in students if e.text.fingerprint != relay.student.text.fingerprint]:
        raise ValueError(f"the student {other[0]!r} has another tokenizer and cannot go on from these tokens")

    def varied(student: Student = relay.student, teacher: Teacher = relay.teacher, forbid: bool = False) -> Relay:
        same = {"call_rule": relay.call_rule, "record": relay.record, "batch_size": relay.batch_size}
        return Relay(student, teacher, replace(config, forbid_calls=forbid, on_failure="exclude"), **same)

    arms = [
        _Arm("with", varied(), {}),
        _Arm("without", varied(), {"forbid": True}),
        _Arm("alone", varied(forbid=True), {"forbid": True}),
        *([_Arm("placebo", varied(forbid=True), {})] if placebo else []),
        *(_Arm(f"n={n}", varied(), {"call": n}) for n in lengths),
        *(_Arm(f"teacher={t.name}", varied(teacher=t), {}) for t in teachers),
        *(_Arm(f"student={e.name}", varied(student=e, forbid=True), {"forbid": True}) for e in students),
    ]
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"two arms have one name: {', '.join(names)}; give each length once and teachers other names")
    return arms


def _answers(
    arm: _Arm, calls: Sequence[tuple[int, Call, Trace]], samples: int, seed: int, bar: tqdm, alone: list[list[Trace]]
) -> list[list[Trace]]:
    """The graded forks of each call in one arm, all decoded together; ``alone`` is what the placebo stands on."""
    seeded = [replace(t, seed=problem_seed(seed, f"{t.id}/{j}")) for _, _, t in calls for j in range(samples)]
    at = [call.start if arm.change else call.end for _, call, _ in calls for _ in range(samples)]
    change = dict(arm.change)
    own = [answer for answers in alone for answer in answers]
    if arm.name == "placebo":
        every = [call for _, call, _ in calls for _ in range(samples)]
        seeded = [_placebo(*parts, arm.relay.student) for parts in zip(seeded, every, own)]
        at = [len(trace.completion_ids) for trace in seeded]
    elif "forbid" not in change:  # a silent call has no command after which a fork could begin
        silent = [call.start == call.end for _, call, _ in calls for _ in range(samples)]
        wanted = [change.get("call", call.requested) for _, call, _ in calls for _ in range(samples)]
        change = {
            "call": [n if quiet or "call" in change else None for n, quiet in zip(wanted, silent)],
            "write_call": [not quiet for quiet in silent],
        }
    answers = graded_forks(arm.relay, seeded, at, bar, **change)
    if arm.name == "placebo":  # where the student failed alone, its placebo is missing, too
        answers = [before if before.stop in UNFINISHED else answer for answer, before in zip(answers, own)]
    return [answers[k : k + samples] for k in range(0, len(answers), samples)]


def graded_forks(relay: Relay, traces: Sequence[Trace], at: Sequence[int], bar: tqdm, **change: Any) -> list[Trace]:
    """The graded forks of traces (``Relay.forks``), decoded together; ``bar`` counts those that are done."""
    stream = relay.forks(traces, at, **change)
    try:
        for event in stream:
            bar.update(isinstance(event, Done))
    finally:
        stream.close()
    return [graded(fork, problem_of(trace)) for fork, trace in zip(stream.traces, traces)]


def told_of_lost(forks: int, kept: int) -> None:
    """Warn of forks in which a model failed: they are missing values. RuntimeError where none is left."""
    if kept == forks:
        return
    text = f"a model failed in {forks - kept} of {forks} forks, which are missing values"
    if not kept:
        raise RuntimeError(f"{text}; nothing is left to measure; see that the models answer, and call again")
    warnings.warn(text, stacklevel=3)


def _placebo(trace: Trace, call: Call, alone: Trace, student: Student) -> Trace:
    """The trace up to its call, and after the command the tokens that the student wrote without it."""
    end = call.start + call.delivered
    own = alone.completion_ids[call.start : end]
    ended = len(alone.completion_ids) <= end and alone.stop == "end"
    own = own[:-1] if ended else own
    ids = trace.completion_ids[: call.end] + own
    calls = [c for c in trace.calls if c.end <= call.end and c is not call] + [replace(call, delivered=len(own))]
    source, stop = trace.source[: call.end] + TEACHER * len(own), "teacher_end" if ended or not own else "interrupted"
    parts = dict(completion_ids=ids, source=source, pieces=student.text.pieces(ids), calls=calls, stop=stop)
    return replace(trace, **STATISTICS | parts)


def _means(answers: list[Trace], call: Call, *, placebo: bool) -> tuple[float, ...]:
    """The last seven of ``EFFECT_COLUMNS``. What stands after a placebo is the student's own."""
    answers = [t for t in answers if t.stop not in UNFINISHED]
    count, right = len(answers) or np.nan, sum(bool(t.correct) for t in answers)
    delivered = [c.delivered for t in answers for c in t.answered if c.start == call.start]
    later = sum(c.start > call.start for t in answers for c in t.answered)
    tokens = sum(t.count(TEACHER) for t in answers), sum(len(t.completion_ids) for t in answers)
    if placebo:
        delivered, tokens = [], (tokens[0] - sum(delivered), tokens[1])
    mean = sum(delivered) / len(delivered) if delivered else 0.0
    return len(answers), right, right / count, mean, later / count, *(n / count for n in tokens)


def verdicts(effects: pd.DataFrame, *, against: str = "without") -> pd.DataFrame:
    """What each call was good for: one row per call, compared with the arm ``against``.

    An arm is right if at least half of its answers are. ``needed``: right with the call, wrong without. ``harmful``:
    the reverse. ``wasted``: no difference. ``difference`` is that of the accuracies.
    """
    arms = [arm for arm in effects["arm"].cat.categories if arm != "with"]
    if against not in arms:
        raise ValueError(f"against is {against!r}; it must be one of the arms {', '.join(arms)}")
    here, other = (effects[effects["arm"] == arm].set_index(["trace", "call"]) for arm in ("with", against))
    frame = here[["id", "suite", "level", "first", "start"]].copy()
    frame["with"], frame["against"] = here["accuracy"], other["accuracy"]
    frame["difference"] = frame["with"] - frame["against"]
    frame["later_calls"] = other["later_calls"]
    frame = frame.dropna(subset="difference").reset_index()
    right, anyway = frame["with"] >= 0.5, frame["against"] >= 0.5
    names = np.select([right & ~anyway, right & anyway, ~right & ~anyway], VERDICTS[:3], VERDICTS[3])
    frame["verdict"] = pd.Categorical(names, categories=VERDICTS)
    return frame


def effects_by(effects: pd.DataFrame, by: str = "suite", *, seed: int = 0) -> pd.DataFrame:
    """The accuracy of each arm and what the call adds to it; one row per group of the column ``by`` and arm.

    ``gain`` is the accuracy with the call less that of the arm, a mean over calls, with its 95 % interval from a
    bootstrap over traces (NaN for a single trace).
    """
    if by not in effects:
        raise ValueError(f"by is {by!r}; it must be a column: {', '.join(map(str, effects))}")
    with_call = effects[effects["arm"] == "with"].set_index(["trace", "call"])["accuracy"]
    index = pd.MultiIndex.from_frame(effects[["trace", "call"]])
    frame = effects.assign(gain=with_call.reindex(index).to_numpy() - effects["accuracy"]).dropna(subset="gain")
    rows = []
    for (group, arm), f in frame.groupby([by, "arm"], sort=False, observed=True, dropna=False):
        each = f.groupby("trace")["gain"].agg(["sum", "count"]).to_numpy()  # (traces, 2)
        sums = each[np.random.default_rng(seed).integers(0, len(each), (1000, len(each)))].sum(axis=1)
        low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5]) if len(each) > 1 else (np.nan, np.nan)
        means = f[["accuracy", "gain", "delivered", "later_calls", "teacher_tokens"]].mean()
        rows.append({by: group, "arm": arm, "calls": len(f)} | means.to_dict() | {"low": low, "high": high})
    order = [by, "arm", "calls", "accuracy", "gain", "low", "high", "delivered", "later_calls", "teacher_tokens"]
    result = pd.DataFrame(rows, columns=order)
    result["arm"] = pd.Categorical(result["arm"], categories=effects["arm"].cat.categories)
    return result
