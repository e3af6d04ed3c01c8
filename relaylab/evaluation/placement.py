"""Where a student calls: position in the answer, kind of step, how unsure it was, what it got, and with whom.

Functions from traces to tidy pandas frames; ``views/placement_figures.py`` draws them. Nothing is decoded here:
whether a call *mattered* takes other answers from the same prefix, see ``counterfactual.py``.

Lines and places are those of the answer without its commands, as the teacher sees it. Line k of an answer is taken to
be step k of the worked solution (``problem["steps"]``), as in the embedded suites; without steps no call has a kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from relaylab.call_tag import find_calls
from relaylab.evaluation.learning import result_digits
from relaylab.trace import STUDENT, TEACHER, Call, Trace, to_frame

# Where in its line a call begins: nothing of the line is there yet; in words; before or within a sum or product; the
# result comes next, before or behind the "="; within the result's digits; behind them.
PLACES = ("line start", "words", "expression", "before result", "in result", "after result")
PHASES = ("before", "teacher", "after")

_ARITHMETIC = r"[0-9 .,+\-*/×÷^()=]*"
_LEFT, _RIGHT = re.compile(_ARITHMETIC + r"\Z"), re.compile(_ARITHMETIC)
_OPERATION = re.compile(r"\d.*[+\-*/×÷^]|[+\-*/×÷^].*\d")

CALL_COLUMNS = (
    "trace", "id", "suite", "level", "correct", "student", "call", "first", "forced", "status", "finish", "teacher",
    "start", "tokens", "position", "line", "lines", "place", "requested", "granted", "delivered", "outcome", "step",
    "kind", "share", "results",
)  # fmt: skip
WINDOW_COLUMNS = ("trace", "id", "suite", "call", "group", "draw", "phase", "offset", "token", "entropy", "logprob")


def calls_frame(traces: Sequence[Trace]) -> pd.DataFrame:
    """One row a call, answered or not, in the order of the traces.

    trace: number of its trace in ``traces``. call: its number in the trace; first: whether no answered call was before
    it. start: completion token at which the command begins; tokens: of the completion; position: start / tokens, 0..1.
    line: of the answer, from 0, of ``lines``. place: one of ``PLACES``. requested, granted, delivered: tokens; outcome:
    what became of the request, see ``outcome``. step, kind: of all steps, the one of whose result's digits the teacher
    writes the largest ``share`` (0..1), the earliest where several are equal; none where it writes no digit of any.
    results: steps of whose result it writes at least half.

    >>> t = Trace("q", [1], [1, 2, 3, 4, 5], "scttt", ["7*8=", "<call>3</call>", "5", "6", "."],
    ...           [Call(1, 2, 3, 3, 3, 3)], problem={"steps": [{"kind": "product", "result": 56, "expression": "7*8"}]})
    >>> row = calls_frame([t]).iloc[0]
    >>> print(row["position"], row["place"], row["kind"], row["share"], sep=", ")
    0.2, before result, product, 1.0
    """
    rows = []
    for number, trace in enumerate(traces):
        text, _, begins = _content(trace)
        digits, steps = result_digits(trace), trace.problem.get("steps", ())
        answered = 0
        for k, (call, at) in enumerate(zip(trace.calls, begins)):
            step, share, results = _delegated(call, digits, len(steps) or None)
            rows.append(
                {
                    "trace": number,
                    "id": trace.id,
                    "suite": trace.problem.get("suite"),
                    "level": trace.problem.get("level"),
                    "correct": trace.correct,
                    "student": trace.student,
                    "call": k,
                    "first": not answered,
                    "forced": call.forced,
                    "status": call.status,
                    "finish": call.finish_reason,
                    "teacher": call.teacher,
                    "start": call.start,
                    "tokens": len(trace.completion_ids),
                    "position": call.start / len(trace.completion_ids) if trace.completion_ids else 0.0,
                    "line": text.count("\n", 0, at),
                    "lines": text.rstrip("\n").count("\n") + 1,
                    "place": place(text, at),
                    "requested": call.requested,
                    "granted": call.granted,
                    "delivered": call.delivered,
                    "outcome": outcome(call),
                    "step": step,
                    "kind": steps[step]["kind"] if steps and step is not None else None,
                    "share": share,
                    "results": results,
                }
            )
            answered += call.status == "answered"
    frame = pd.DataFrame(rows, columns=list(CALL_COLUMNS))
    frame["place"] = pd.Categorical(frame["place"], categories=PLACES)
    return frame.astype({"step": "Int64", "requested": "Int64"})


def outcome(call: Call) -> str:
    """Requested against delivered, in words: ``in full``; ``cut by caps`` (granted less than requested); ``teacher
    ended`` (the answer, before it had written what was granted); ``fixed length`` (granted more, see
    ``RelayConfig.call_tokens``); or, of a call without an answer, its status.

    >>> outcome(Call(0, 1, 20, 8, 8, 8)), outcome(Call(0, 1, 20, 20, 3, 3, finish_reason="stop"))
    ('cut by caps', 'teacher ended')
    """
    if call.status != "answered":
        return call.status
    if call.finish_reason == "stop" and call.written < call.granted:
        return "teacher ended"
    if call.requested is None or call.granted == call.requested:
        return "in full"
    return "cut by caps" if call.granted < call.requested else "fixed length"


def place(text: str, at: int) -> str:
    """Where in its line character ``at`` of an answer is: one of ``PLACES``.

    Arithmetic is digits and + - * / × ÷ ^ ( ) =; what is written in LaTeX counts as words.

    >>> line = "All tiles: 74*48=3552."
    >>> [place(line, i) for i in (0, 4, 11, 13, 16, 17, 19, 21)]
    ['line start', 'words', 'expression', 'expression', 'before result', 'before result', 'in result', 'after result']
    """
    begin, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    before, behind = text[begin:at], text[at : end if end >= 0 else len(text)]
    if not before.strip():
        return "line start"
    left, right = _LEFT.search(before)[0], _RIGHT.match(behind)[0]
    if "=" in left:
        digits = any(c.isdigit() for c in left[left.rfind("=") :])
        return "before result" if not digits else "in result" if right[:1].isdigit() else "after result"
    if not _OPERATION.search(left + right):
        return "words"
    return "before result" if right.lstrip().startswith("=") else "expression"


def windows_frame(traces: Sequence[Trace], *, width: int = 8, baseline: int = 1, seed: int = 0) -> pd.DataFrame:
    """The student's entropy and log-probability (nats) around each answered call, and where it did not call.

    One row a token of a window. group: ``call``; or ``no call``, up to ``baseline`` positions that are drawn for each
    call of those in the same trace that are at the same ``place`` of a line and have no token of a command or of the
    teacher within ``width``; a call without any such position has no baseline. draw: the number of the position, 0 for
    calls. phase and offset: ``before``, -width..0, where 0 is the token at which the command begins (or the position
    itself); ``teacher``, 1..width, the first tokens that the teacher wrote, as the student sees them; ``after``,
    1..width, behind the answer. Before and after end where a token is not the student's own. Tokens without a value
    have no row.

    Raises ValueError where no trace has values: they are kept by ``record=True``.
    """
    if width < 1 or baseline < 0:
        raise ValueError(f"width is {width} and baseline {baseline}; a window has at least 1 token, a baseline 0 draws")
    recorded = [(k, t) for k, t in enumerate(traces) if t.entropies is not None or t.logprobs is not None]
    if not recorded:
        raise ValueError("no trace has entropies or log-probabilities: decode with record=True")
    rows = []
    for number, trace in recorded:
        draws = np.random.default_rng([seed, number])  # of its own: other traces change no draw
        text, offsets, begins = _content(trace)
        quiet = [i for i in range(len(trace.source)) if set(trace.source[max(0, i - width) : i + width + 1]) == {"s"}]
        places = {i: place(text, offsets[i]) for i in quiet} if trace.calls else {}
        for k, (call, at) in enumerate(zip(trace.calls, begins)):
            if call.status != "answered":
                continue
            here = place(text, at)
            alike = [i for i, name in places.items() if name == here]
            chosen = draws.choice(alike, size=min(baseline, len(alike)), replace=False).tolist() if alike else []
            answer = range(call.end, call.end + call.delivered)
            head = {"trace": number, "id": trace.id, "suite": trace.problem.get("suite"), "call": k}
            rows += _window(trace, call.start, answer, width, head | {"group": "call", "draw": 0})
            for draw, i in enumerate(chosen):
                rows += _window(trace, i, range(i + 1, i + 1), width, head | {"group": "no call", "draw": draw})
    frame = pd.DataFrame(rows, columns=list(WINDOW_COLUMNS))
    frame["phase"] = pd.Categorical(frame["phase"], categories=PHASES)
    return frame


def transfer_frame(runs: Mapping[str, Sequence[Trace]], *, by: str | None = None) -> pd.DataFrame:
    """One student with several teachers: one row a teacher, and a group where ``by`` is a column of ``trace.to_frame``.

    ``runs``: traces by the teacher's name, all of the same problems in the same order. accuracy with its 95 % interval
    low..high (Wilson); teacher_share: of all tokens; mean_ratio: mean call ratio of a response; calls and
    unanswered_calls: a response; called: share of the problems with an answered call; mean_n: delivered tokens an
    answered call. gained and lost: problems that are right here and wrong with the first teacher, and the reverse.

    Raises ValueError where problems or students differ, or where an answer is not graded.
    """
    names = _check(runs)
    frames = {name: to_frame(runs[name]) for name in names}
    first = frames[names[0]]
    if by is not None and by not in first:
        raise ValueError(f"by is {by!r}; it must be a column of trace.to_frame: {', '.join(first)}")
    if any(frame["correct"].isna().any() for frame in frames.values()):
        raise ValueError("some answers are not graded; decode problems with Pair.decode, which grades them")
    rows = []
    for name, frame in frames.items():
        right, other = frame["correct"].astype(bool), first["correct"].astype(bool)
        for group, f in frame.groupby(by, sort=False) if by else [(None, frame)]:
            here, before = right[f.index], other[f.index]
            interval = binomtest(int(here.sum()), len(f)).proportion_ci(method="wilson")
            rows.append(
                {"teacher": name}
                | ({by: group} if by else {})
                | {
                    "problems": len(f),
                    "accuracy": here.mean(),
                    "low": interval.low,
                    "high": interval.high,
                    "teacher_share": f["teacher_tokens"].sum() / max(1, f["tokens"].sum()),
                    "mean_ratio": f["call_ratio"].mean(),
                    "calls": f["calls"].mean(),
                    "unanswered_calls": f["unanswered_calls"].mean(),
                    "called": (f["calls"] > 0).mean(),
                    "mean_n": f["teacher_tokens"].sum() / calls if (calls := f["calls"].sum()) else np.nan,
                    "gained": int((here & ~before).sum()),
                    "lost": int((before & ~here).sum()),
                }
            )
    return pd.DataFrame(rows)


def agreement_frame(runs: Mapping[str, Sequence[Trace]]) -> pd.DataFrame:
    """Does a student call at the same places, whoever answers? One row a pair of teachers, ``a`` and ``b``.

    Of answered calls. either: problems with a call in one of the two; same_first: the share of these whose first calls
    begin at the same token. Up to it nothing has been heard of a teacher, so with one seed it is 1 unless calls fail;
    what the teachers change comes behind it. later: those lines of answers with a call that is not the first, in one of
    the two; same_later: the share of these lines with such a call in both. NaN where there is none.

    Raises ValueError where the problems or the students differ.
    """
    names = _check(runs)
    if len(names) < 2:
        raise ValueError("agreement takes the traces of at least two teachers")
    lines: dict[str, list[set[int]]] = {name: [set() for _ in runs[name]] for name in names}
    for name in names:
        calls = calls_frame(runs[name])
        for row in calls[(calls["status"] == "answered") & ~calls["first"]].itertuples():
            lines[name][row.trace].add(row.line)
    rows = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            firsts = [(s.first_call, t.first_call) for s, t in zip(runs[a], runs[b])]
            called = [(x, y) for x, y in firsts if not x is y is None]
            both = sum(len(x & y) for x, y in zip(lines[a], lines[b]))
            either = sum(len(x | y) for x, y in zip(lines[a], lines[b]))
            same = float(np.mean([x == y for x, y in called])) if called else np.nan
            rows.append(
                {
                    "a": a,
                    "b": b,
                    "problems": len(firsts),
                    "either": len(called),
                    "same_first": same,
                    "later": either,
                    "same_later": both / either if either else np.nan,
                }
            )
    return pd.DataFrame(rows)


def _content(trace: Trace) -> tuple[str, list[int], list[int]]:
    """The text without closed commands; where in it each token begins; where in it each call begins.

    A token can hold the end of a command and what follows it, so commands are cut out by characters.
    """
    ends = np.cumsum([0, *map(len, trace.pieces)])
    text, begins = trace.text, []
    keep = np.ones(len(text), bool)
    for call in trace.calls:
        begin = int(ends[call.start])
        # An unclosed tag is text, and a call that was taken over (Relay's ``announce``) has no command.
        found = [c for c in find_calls(text[begin : ends[call.end]]) if c.closed]
        for command in found:
            keep[begin + command.start : begin + command.end] = False
        begins.append(begin + found[0].start if found else begin)
    kept = np.concatenate([[0], np.cumsum(keep)])
    content = "".join(c for c, wanted in zip(text, keep) if wanted)
    return content, kept[ends].tolist(), kept[begins].tolist()


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
    own = trace.source
    start, behind = at, max(at + 1, answer.stop)
    while start > max(0, at - width) and own[start - 1] == STUDENT:
        start -= 1
    stop = behind
    while stop < min(len(own), behind + width) and own[stop] == STUDENT:
        stop += 1
    found = [("before", i - at, i) for i in range(start, min(at + 1, len(own)))]
    found += [("teacher", k + 1, i) for k, i in enumerate(answer[:width]) if own[i] == TEACHER]
    found += [("after", i - behind + 1, i) for i in range(behind, stop)]
    rows = []
    for phase, offset, i in found:
        values = [None if column is None else column[i] for column in (trace.entropies, trace.logprobs)]
        if values != [None, None]:
            rows.append(head | dict(phase=phase, offset=offset, token=i, entropy=values[0], logprob=values[1]))
    return rows


def _check(runs: Mapping[str, Sequence[Trace]]) -> list[str]:
    """The names of the runs, which must be of one student and of the same problems in one order."""
    names = list(runs)
    if not names or not runs[names[0]]:
        raise ValueError("there are no traces; give the traces of each teacher by its name")
    ids = [t.id for t in runs[names[0]]]
    if other := [name for name in names if [t.id for t in runs[name]] != ids]:
        raise ValueError(f"the traces of {other[0]!r} are not of the same problems in the same order")
    if len(students := sorted({t.student for traces in runs.values() for t in traces})) > 1:
        raise ValueError(f"the traces are of several students, {', '.join(students)}; compare teachers of one")
    return names
