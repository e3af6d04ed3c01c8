"""Calls that mattered: what becomes of an answer from the same prefix without a call, with another n, another teacher.

Every answered call is forked (``Relay.forks``) into *arms*, all with the same seeds:

    with          the call as it stands, the teacher asked anew
    without       this call forbidden, and any in the next few tokens; the student may call later, and often does
    alone         no call from here on
    n=20          a call for 20 tokens in its place
    teacher=NAME  the call as it stands, another teacher answering it and those that follow
    student=NAME  another student, such as the one before training, goes on alone from here

A student that has learned to be sure of a call has nothing sensible to write in its place: where it is banned, a poor
answer may be the ban's doing. That is what the arm of another student is for.

This decodes: a fork costs its prefix and the rest of the answer. Where calls are needs no fork: ``placement.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from relaylab.engine.engine import Engine
from relaylab.relay.events import Done
from relaylab.relay.pair import UNFINISHED, graded, problem_seed
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import Teacher
from relaylab.tasks.suites import Problem, Step
from relaylab.trace import TEACHER, Call, Trace

VERDICTS = ("needed", "wasted, right anyway", "wasted, wrong anyway", "harmful")
EFFECT_COLUMNS = (
    "trace", "id", "suite", "level", "call", "first", "start", "arm", "teacher", "n", "samples", "right", "accuracy",
    "delivered", "later_calls", "teacher_tokens", "tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Arm:
    name: str
    relay: Relay
    change: dict[str, Any]  # of ``Relay.forks``; none: the fork lies behind the command, and the teacher is asked anew


def call_effects(
    traces: Sequence[Trace],
    relay: Relay,
    *,
    samples: int = 1,
    lengths: Sequence[int] = (),
    teachers: Sequence[Teacher] = (),
    students: Sequence[Engine] = (),
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Fork every answered call of graded traces; one row a call and arm.

    ``relay`` decodes the forks and should have the terms of the traces, but for the temperature: at 0 a fork is one
    answer, above 0 each arm has ``samples`` answers, whose seeds are functions of ``seed``, the trace's id and the
    sample. ``lengths``, ``teachers`` and ``students`` add arms. All forks of an arm are decoded together.

    trace and call: as in ``placement.calls_frame``. first: whether it is the trace's first answered call. n: what is
    asked for, none where the call is left out. samples: answers that count (those that an excluding relay gave up do
    not), right of them correct, accuracy in 0..1. Means of these answers: delivered tokens of the call, later_calls
    (answered ones behind it), teacher_tokens and tokens of the whole answer.

    Raises ValueError where samples would all be the same answer, a trace holds no problem or a call without a command
    (``write_call=False``), a length is changed by the relay's caps, the relay forbids calls, a student has another
    tokenizer, or an arm comes twice.

    >>> from relaylab.relay.pair import load_pair
    >>> from relaylab.relay.call_rules import CallAt
    >>> from relaylab.tasks.suites import problems
    >>> pair = load_pair("student")
    >>> terms = dict(call_rule=CallAt({5: 8}), max_tokens=80, max_calls=1)
    >>> traces = pair.decode(problems("tiles", 1), progress=False, **terms)
    >>> found = call_effects(traces, pair.relay(**terms), progress=False)
    >>> found["arm"].tolist()
    ['with', 'without', 'alone']
    """
    if relay.forbid_calls:
        raise ValueError("the relay forbids calls; give one with a teacher, the forks without calls are made here")
    drawn = relay.config.temperature > 0 or getattr(relay.teacher, "temperature", 0) > 0
    if samples < 1 or (samples > 1 and not drawn):
        raise ValueError(f"samples is {samples}: at least 1, and at temperature 0 no more, since all would be the same")
    caps = [c for c in (relay.config.fixed_call_tokens, relay.config.max_call_tokens) if c is not None]
    if bad := [n for n in lengths if any(n > c for c in caps) or relay.config.fixed_call_tokens not in (None, n)]:
        raise ValueError(f"a call for {bad[0]} tokens is changed by {relay.config}; choose other lengths or config")
    if other := [e.name for e in students if e.text.fingerprint != relay.student.text.fingerprint]:
        raise ValueError(f"the student {other[0]!r} has another tokenizer and cannot go on from these tokens")
    arms = [
        _Arm("with", relay, {}),
        _Arm("without", relay, {"forbid": True}),
        _Arm("alone", _varied(relay, forbid_calls=True), {"forbid": True}),
        *(_Arm(f"n={n}", relay, {"call": n}) for n in lengths),
        *(_Arm(f"teacher={t.name}", _varied(relay, teacher=t), {}) for t in teachers),
        *(_Arm(f"student={e.name}", _varied(relay, student=e, forbid_calls=True), {"forbid": True}) for e in students),
    ]
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"two arms have one name: {', '.join(names)}; give each length once and teachers other names")
    calls = [(k, c, t) for k, t in enumerate(traces) for c in t.answered]
    for _, call, trace in calls:
        if "answer" not in trace.problem:
            raise ValueError(f"trace {trace.id!r} holds no problem to grade its forks by; decode with Pair.decode")
        if call.start == call.end:
            raise ValueError(f"trace {trace.id!r}: a call without a command (write_call=False) cannot be forbidden")
    rows = []
    with tqdm(total=len(arms) * len(calls) * samples, desc="forking", disable=not progress) as bar:
        for order, arm in enumerate(arms):
            for (number, call, trace), answers in zip(calls, _answers(arm, calls, samples, seed, bar)):
                head = {
                    "trace": number,
                    "id": trace.id,
                    "suite": trace.problem.get("suite"),
                    "level": trace.problem.get("level"),
                    "call": trace.calls.index(call),
                    "first": call is trace.answered[0],
                    "start": call.start,
                    "arm": arm.name,
                    "teacher": arm.relay.teacher.name,
                    "n": None if "forbid" in arm.change else arm.change.get("call", call.requested),
                }
                rows.append((number, call.start, order, head | _summed(answers, call, arm)))
    frame = pd.DataFrame([row for *_, row in sorted(rows, key=lambda r: r[:3])], columns=list(EFFECT_COLUMNS))
    frame["arm"] = pd.Categorical(frame["arm"], categories=names)
    return frame.astype({"n": "Int64"})


def verdicts(effects: pd.DataFrame, *, against: str = "without") -> pd.DataFrame:
    """What each call was good for: one row a call, from the frame of ``call_effects``.

    An arm is right where at least half of its answers are. ``needed``: right with the call, wrong in the arm
    ``against``; ``harmful``: the reverse; ``wasted``: the same either way. difference: accuracy with the call less
    accuracy against it, in -1..1; later_calls: those of the arm ``against``.

    Raises ValueError where ``against`` is no arm of the frame.
    """
    arms = [arm for arm in effects["arm"].cat.categories if arm != "with"]
    if against not in arms:
        raise ValueError(f"against is {against!r}; it must be one of the arms {', '.join(arms)}")
    key = ["trace", "call"]
    here, other = (effects[effects["arm"] == arm].set_index(key) for arm in ("with", against))
    frame = here[["id", "suite", "level", "first", "start"]].copy()
    frame["with"], frame["against"] = here["accuracy"], other["accuracy"]
    frame["difference"] = frame["with"] - frame["against"]
    frame["later_calls"] = other["later_calls"]
    frame = frame.dropna(subset="difference").reset_index()
    right, anyway = frame["with"] >= 0.5, frame["against"] >= 0.5
    found = np.select([right & ~anyway, right & anyway, ~right & ~anyway], VERDICTS[:3], VERDICTS[3])
    frame["verdict"] = pd.Categorical(found, categories=VERDICTS)
    return frame


def effects_by(effects: pd.DataFrame, by: str = "suite", *, seed: int = 0, resamples: int = 1000) -> pd.DataFrame:
    """The accuracy of each arm and what the call adds over it: one row a group and arm, from ``call_effects``' frame.

    gain: accuracy ``with`` the call less that of the arm, a mean over calls, with the 95 % interval low..high of a
    bootstrap over traces (a trace's calls stay together); none for a single trace. Also ``calls``, and means over
    calls of ``delivered``, ``later_calls`` and ``teacher_tokens``.

    Raises ValueError where ``by`` is no column.
    """
    if by not in effects:
        raise ValueError(f"by is {by!r}; it must be a column: {', '.join(effects)}")
    with_call = effects[effects["arm"] == "with"].set_index(["trace", "call"])["accuracy"]
    index = pd.MultiIndex.from_frame(effects[["trace", "call"]])
    frame = effects.assign(gain=with_call.reindex(index).to_numpy() - effects["accuracy"]).dropna(subset="gain")
    rows = []
    for (group, arm), f in frame.groupby([by, "arm"], sort=False, observed=True):
        each = f.groupby("trace")["gain"].agg(["sum", "count"]).to_numpy()  # (traces, 2)
        draws = np.random.default_rng(seed).integers(0, len(each), (resamples, len(each)))
        sums = each[draws].sum(axis=1)
        low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5]) if len(each) > 1 else (np.nan, np.nan)
        means = f[["accuracy", "gain", "delivered", "later_calls", "teacher_tokens"]].mean()
        rows.append({by: group, "arm": arm, "calls": len(f)} | means.to_dict() | {"low": low, "high": high})
    order = [by, "arm", "calls", "accuracy", "gain", "low", "high", "delivered", "later_calls", "teacher_tokens"]
    found = pd.DataFrame(rows, columns=order)
    found["arm"] = pd.Categorical(found["arm"], categories=effects["arm"].cat.categories)
    return found


def _answers(
    arm: _Arm, calls: Sequence[tuple[int, Call, Trace]], samples: int, seed: int, bar: tqdm
) -> list[list[Trace]]:
    """The graded forks of each call in one arm."""
    seeded, at = [], []
    for _, call, trace in calls:
        for sample in range(samples):
            seeded.append(replace(trace, seed=problem_seed(seed, f"{trace.id}/{sample}")))
            at.append(call.start if arm.change else call.end)
    answers: list[list[Trace]] = [[] for _ in calls]
    stream = arm.relay.forks(seeded, at, **arm.change)
    try:
        for event in stream:
            if isinstance(event, Done):
                k = event.row // samples
                answers[k].append(graded(event.trace, _problem(calls[k][2])))
                bar.update()
    finally:
        stream.close()
    return answers


def _problem(trace: Trace) -> Problem:
    steps = tuple(Step(**step) for step in trace.problem.get("steps", ()))
    return Problem(**trace.problem | {"id": trace.id, "steps": steps})


def _summed(answers: list[Trace], call: Call, arm: _Arm) -> dict[str, Any]:
    answers = [t for t in answers if t.stop not in UNFINISHED]
    right = sum(bool(t.correct) for t in answers)
    # The call at hand: it begins where the old one did; what is answered behind it came later.
    own = [c for t in answers for c in t.answered if c.start == call.start]
    later = [sum(c.start > call.start for c in t.answered) for t in answers]
    return {
        "samples": len(answers),
        "right": right,
        "accuracy": right / len(answers) if answers else np.nan,
        "delivered": np.mean([c.delivered for c in own]) if own else 0.0,
        "later_calls": np.mean(later) if answers else np.nan,
        "teacher_tokens": np.mean([t.count(TEACHER) for t in answers]) if answers else np.nan,
        "tokens": np.mean([len(t.completion_ids) for t in answers]) if answers else np.nan,
    }


def _varied(
    relay: Relay, *, student: Engine | None = None, teacher: Teacher | None = None, forbid_calls: bool = False
) -> Relay:
    """The relay with another student or teacher, or with calls forbidden."""
    return Relay(
        student or relay.student,
        teacher or relay.teacher,
        config=relay.config,
        forbid_calls=forbid_calls,
        call_rule=relay.call_rule,
        record=relay.record,
        batch_size=relay.batch_size,
    )
