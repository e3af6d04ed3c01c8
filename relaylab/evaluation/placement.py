"""Where a student calls: position in the answer, kind of step, how unsure it was, what it got, and with whom.

Functions from traces to tidy frames. Lines and places are those of the answer without its commands. Line k counts as
step k of the worked solution (``problem["steps"]``), as in the embedded suites. Without steps no call has a kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from relaylab.evaluation.learning import answer_text, kind_of_step, result_digits
from relaylab.trace import STUDENT, TEACHER, UNFINISHED, Call, Trace, to_frame

# Where in its line a call begins: at its start; in words; before or within a sum or product; right before the result;
# within its digits; after them.
PLACES = ("line start", "words", "expression", "before result", "in result", "after result")
PHASES = ("before", "teacher", "after")

_ARITHMETIC = "0123456789 .,+-*/×÷^()="
_OPERATION = re.compile(r"\d.*[+\-*/×÷^]|[+\-*/×÷^].*\d")

CALL_COLUMNS = (
    "trace", "id", "suite", "level", "correct", "student", "call", "first", "forced", "status", "finish", "teacher",
    "start", "tokens", "position", "line", "lines", "place", "requested", "granted", "delivered", "outcome", "step",
    "kind", "share", "results",
)  # fmt: skip
WINDOW_COLUMNS = ("trace", "id", "suite", "call", "group", "draw", "phase", "offset", "token", "entropy", "logprob")


def calls_frame(traces: Sequence[Trace]) -> pd.DataFrame:
    """One row per call, answered or not, in the order of the traces (``CALL_COLUMNS``).

    ``first``: no answered call came before. ``position`` is ``start`` / ``tokens``. ``step`` and ``kind``: the step of
    whose result's digits the teacher writes the largest ``share``, the earliest of equals (``kind_of_step``).
    ``results`` counts the steps of whose result it writes at least half.

    >>> t = Trace("q", [1], [1, 2, 3, 4, 5], "scttt", ["7*8=", "<call>3</call>", "5", "6", "."],
    ...           [Call(1, 2, 3, 3, 3, 3)], problem={"steps": [{"kind": "product", "result": 56, "expression": "7*8"}]})
    >>> row = calls_frame([t]).iloc[0]
    >>> print(row["position"], row["place"], row["kind"], row["share"], sep=", ")
    0.2, before result, product, 1.0
    """
    rows = []
    for number, trace in enumerate(traces):
        text, _, begins = answer_text(trace)
        digits, steps, tokens = result_digits(trace), trace.problem.get("steps", ()), len(trace.completion_ids)
        first = trace.answered[0].start if trace.answered else tokens
        for k, (call, at) in enumerate(zip(trace.calls, begins)):
            step, share, results = _delegated(call, digits, len(steps) or None)
            kind = kind_of_step(steps[step]) if steps and step is not None else None
            rows.append((
                number, trace.id, trace.problem.get("suite"), trace.problem.get("level"), trace.correct, trace.student,
                k, call.start <= first, call.forced, call.status, call.finish_reason, call.teacher,
                call.start, tokens, call.start / max(1, tokens), text.count("\n", 0, at),
                text.rstrip("\n").count("\n") + 1, place(text, at), call.requested, call.granted, call.delivered,
                call_outcome(call), step, kind, share, results,
            ))  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(CALL_COLUMNS))
    frame["place"] = pd.Categorical(frame["place"], categories=PLACES)
    return frame.astype({"step": "Int64", "requested": "Int64"})


def call_outcome(call: Call) -> str:
    """``in full``, ``cut by caps`` (granted less than requested), ``teacher ended`` (the answer, too early), ``fixed
    length`` (granted more), ``line``, ``accepted``; for a call without an answer, its status.
    """
    if call.status != "answered":
        return call.status
    if call.finish_reason == "stop" and call.written < call.granted:
        return "teacher ended"
    if call.finish_reason in ("line", "accepted"):
        return call.finish_reason
    if call.requested is None or call.granted == call.requested:
        return "in full"
    return "cut by caps" if call.granted < call.requested else "fixed length"


def place(text: str, at: int) -> str:
    """Where in its line character ``at`` of an answer is: one of ``PLACES``.

    Arithmetic is digits and + - * / × ÷ ^ ( ) =; LaTeX counts as words.

    >>> line = "All tiles: 74*48=3552."
    >>> [place(line, i) for i in (0, 4, 11, 13, 16, 17, 19, 21)]
    ['line start', 'words', 'expression', 'expression', 'before result', 'before result', 'in result', 'after result']
    """
    begin, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    before, behind = text[begin:at], text[at : end if end >= 0 else len(text)]
    if not before.strip():
        return "line start"
    left = before[len(before.rstrip(_ARITHMETIC)) :]
    right = behind[: len(behind) - len(behind.lstrip(_ARITHMETIC))]
    if "=" in left:
        digits = any(c.isdigit() for c in left[left.rfind("=") :])
        return "before result" if not digits else "in result" if right[:1].isdigit() else "after result"
    if not _OPERATION.search(left + right):
        return "words"
    return "before result" if right.lstrip().startswith("=") else "expression"


def windows_frame(traces: Sequence[Trace], *, width: int = 8, baseline: int = 1, seed: int = 0) -> pd.DataFrame:
    """The student's entropy and log-probability (nats) around each answered call, and where it did not call.

    One row per token. ``phase`` and ``offset``: ``before`` (-width..0, 0 is where the command begins), ``teacher``
    (1..width, the teacher's first tokens as the student sees them), ``after`` (1..width). Before and after end where a
    token is not the student's own. The 0 of a silent call, which has no command, is the teacher's first token: it has a
    row in both.

    Args:
        traces: decoded with ``record=True``.
        width: tokens on either side.
        baseline: ``no call`` positions drawn per call: same trace, same place of a line, no call within ``width``.
        seed: of the draws.
    """
    if width < 1 or baseline < 0:
        raise ValueError(f"width is {width} and baseline {baseline}; a window has at least 1 token, a baseline 0 draws")
    recorded = [(k, t) for k, t in enumerate(traces) if t.entropies is not None or t.logprobs is not None]
    if not recorded:
        raise ValueError("no trace has entropies or log-probabilities: decode with record=True")
    rows = []
    for number, trace in recorded:
        rng = np.random.default_rng([seed, number])  # each trace has its own: other traces change no draw
        text, offsets, begins = answer_text(trace)
        quiet = [i for i in range(len(trace.source)) if set(trace.source[max(0, i - width) : i + width + 1]) == {"s"}]
        places = {i: place(text, offsets[i]) for i in quiet} if trace.calls else {}
        for k, (call, at) in enumerate(zip(trace.calls, begins)):
            if call.status != "answered":
                continue
            here = place(text, at)
            alike = [i for i, name in places.items() if name == here]
            drawn = rng.choice(alike, size=min(baseline, len(alike)), replace=False).tolist() if alike else []
            head = {"trace": number, "id": trace.id, "suite": trace.problem.get("suite"), "call": k}
            answer = range(call.end, call.end + call.delivered)
            rows += _window(trace, call.start, answer, width, head | {"group": "call", "draw": 0})
            for draw, i in enumerate(drawn):
                rows += _window(trace, i, range(i + 1, i + 1), width, head | {"group": "no call", "draw": draw})
    frame = pd.DataFrame(rows, columns=list(WINDOW_COLUMNS))
    frame["phase"] = pd.Categorical(frame["phase"], categories=PHASES)
    return frame


def transfer_frame(runs: Mapping[str, Sequence[Trace]], *, by: str | None = None) -> pd.DataFrame:
    """One student with several teachers: one row per teacher, and per group of ``by``.

    Accuracy has its 95 % interval (Wilson). ``called`` is the share of problems with an answered call. ``gained`` and
    ``lost`` count the problems that are right here and wrong with the first teacher, and the reverse. A problem of
    which one answer is excluded, because a model failed, is left out of all.

    Args:
        runs: teacher -> its traces, all of the same problems in the same order.
        by: a column of ``trace.to_frame`` but ``teacher``.
    """
    runs = _complete(runs)
    names = list(runs)
    frame = pd.concat([to_frame(runs[name]).assign(run=name, place=range(len(runs[name]))) for name in names])
    columns = frame.columns.drop(["run", "place", "teacher"])  # the result has a teacher of its own
    if by is not None and by not in columns:
        raise ValueError(f"by is {by!r}; it must be one of {', '.join(columns)}")
    if frame["correct"].isna().any():
        raise ValueError("some answers are not graded; decode problems with Pair.decode, which grades them")
    frame["correct"] = frame["correct"].astype(bool)
    before = frame.loc[frame["run"] == names[0], "correct"].to_numpy()[frame["place"]]
    frame = frame.assign(gained=frame["correct"] & ~before, lost=~frame["correct"] & before, called=frame["calls"] > 0)
    rows = []
    for key, f in frame.groupby(["run", *([by] if by else [])], sort=False, dropna=False):
        interval = binomtest(int(f["correct"].sum()), len(f)).proportion_ci(method="wilson")
        written, calls = f["teacher_tokens"].sum(), f["calls"].sum()
        row = dict(zip(["teacher", by], key)) | {"problems": len(f), "accuracy": f["correct"].mean()}
        row |= {"low": interval.low, "high": interval.high, "teacher_share": written / max(1, f["tokens"].sum())}
        row |= {"mean_ratio": f["call_ratio"].mean(), **f[["calls", "unanswered_calls", "called"]].mean()}
        rows.append(row | {"mean_n": written / calls if calls else np.nan, **f[["gained", "lost"]].sum()})
    return pd.DataFrame(rows)


def agreement_frame(runs: Mapping[str, Sequence[Trace]]) -> pd.DataFrame:
    """Does a student call at the same places, whoever answers? One row per pair of teachers, ``a`` and ``b``.

    ``same_first``: of the problems with a call in ``either``, the share whose first calls begin at the same token. Up
    to there no teacher has been heard. ``same_later``: of the lines with a ``later`` call, the share with one in both.
    Problems with an excluded answer are left out.
    """
    runs = _complete(runs)
    names = list(runs)
    if len(names) < 2:
        raise ValueError("agreement takes the traces of at least two teachers")
    calls = {name: calls_frame(runs[name]).query("status == 'answered'").astype({"first": bool}) for name in names}
    firsts = {name: c[c["first"]].set_index("trace")["start"] for name, c in calls.items()}
    lines = {name: set(zip(c["trace"], c["line"])) for name, c in ((n, c[~c["first"]]) for n, c in calls.items())}
    rows = []
    for a, b in combinations(names, 2):
        pairs = pd.concat([firsts[a], firsts[b]], axis=1, keys=["a", "b"])  # a row for each problem with a call in one
        later, both = len(lines[a] | lines[b]), len(lines[a] & lines[b])
        same = float((pairs["a"] == pairs["b"]).mean())
        rows.append((a, b, len(runs[a]), len(pairs), same, later, both / later if later else np.nan))
    return pd.DataFrame(rows, columns=["a", "b", "problems", "either", "same_first", "later", "same_later"])


def _delegated(call: Call, digits: dict[int, set[int]], steps: int | None) -> tuple[int | None, float, int]:
    """The step whose result the teacher writes the largest share of, that share, and how many it writes half of."""
    span = set(range(call.end, call.end + call.delivered))
    shares = {k: len(t & span) / len(t) for k, t in digits.items() if steps is None or k < steps}
    step = max(shares, key=lambda k: (shares[k], -k), default=None)
    if step is None or not shares[step]:
        return None, 0.0, 0
    return step, shares[step], sum(share >= 0.5 for share in shares.values())


def _window(trace: Trace, at: int, answer: range, width: int, head: dict) -> list[dict]:
    """The rows of one window; ``answer`` are the teacher's tokens in it."""
    source, end = trace.source, max(at + 1, answer.stop)
    before, after = source[max(0, at - width) : at], source[end : end + width]
    first = at - len(before) + len(before.rstrip(STUDENT))
    tokens = [("before", i - at, i) for i in range(first, min(at + 1, len(source)))]
    tokens += [("teacher", k + 1, i) for k, i in enumerate(answer[:width]) if source[i] == TEACHER]
    tokens += [("after", k + 1, end + k) for k in range(len(after) - len(after.lstrip(STUDENT)))]
    rows = []
    for phase, offset, i in tokens:
        values = [None if column is None else column[i] for column in (trace.entropies, trace.logprobs)]
        if values != [None, None]:
            rows.append(head | dict(phase=phase, offset=offset, token=i, entropy=values[0], logprob=values[1]))
    return rows


def _complete(runs: Mapping[str, Sequence[Trace]]) -> dict[str, list[Trace]]:
    """The problems that all runs have an answer to. Runs are of one student and of the same problems in one order."""
    names = list(runs)
    if not names or not runs[names[0]]:
        raise ValueError("there are no traces; give the traces of each teacher by its name")
    ids = [t.id for t in runs[names[0]]]
    if other := [name for name in names if [t.id for t in runs[name]] != ids]:
        raise ValueError(f"the traces of {other[0]!r} are not of the same problems in the same order")
    if len(students := sorted({t.student for traces in runs.values() for t in traces})) > 1:
        raise ValueError(f"the traces are of several students, {', '.join(students)}; compare teachers of one")
    rows = [row for row in zip(*runs.values()) if not any(t.stop in UNFINISHED for t in row)]
    if not rows:
        raise ValueError(f"every problem has an excluded answer of {' or '.join(names)}; decode them again")
    return dict(zip(names, map(list, zip(*rows))))
