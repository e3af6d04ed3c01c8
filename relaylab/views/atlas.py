"""The call atlas: where the calls of thousands of traces are, as a heat map with the traces behind each cell.

Rows are groups of traces (training steps, systems, suites). Columns are where in its answer a call begins: 20 parts of
its tokens, or its lines, each a step of the solution as in ``evaluation/placement.py``. The page holds the calls of
every trace as a few numbers, and some traces in full, for the player.
"""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from math import fsum
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd

from relaylab.call_tag import visible
from relaylab.evaluation.learning import answer_text
from relaylab.evaluation.table import each_row
from relaylab.trace import STUDENT, Call, Trace, read_traces
from relaylab.views.player import player_state
from relaylab.views.theme import Html, html_table
from relaylab.views.trace_view import cut, plural
from relaylab.views.widget import static_view

COLUMNS = 20  # parts of an answer; and lines, the last one for all that come later
MAX_TRACES, MAX_GROUPS = 20_000, 100
FULL_TOKENS = 200_000  # of all traces in full together: about 10 MB
MAX_POINTS = 4_000  # of the map of scores
MARK = 0.6  # nats, of entropy and of divergence: above, the student is unsure, and the teacher disagrees
CORNERS = {(s, d): f"{'un' * s}sure, the teacher {'dis' * d}agrees" for s in (False, True) for d in (False, True)}
OUTCOMES = ("right", "wrong", "not graded")
ROWS = ("group", "suite", "outcome")  # what the rows of the page can be
WORDS = ("traces", "right (%)", "with an answered call (%)", "answered calls per trace",
         "part of the answer where most traces call")  # fmt: skip
BY = {
    "suite": lambda t: t.problem.get("suite") or "no suite",
    "level": lambda t: t.problem.get("level") or "no level",
    "student": lambda t: t.student or "no name",
    "teacher": lambda t: t.teacher or "no name",
}
_STEP = re.compile(r"([0-9]+)(-[0-9]+)?")  # the file of a training step: its number, and the process if not the first


def atlas(
    traces: Iterable[Trace],
    *,
    by: str | Sequence[Any] = "suite",
    name: str = "group",
    full: int = 250,
    movie: bool = False,
) -> Html:
    """The heat map of where calls begin.

    Rows are in the order of first appearance; numbers are sorted. The traces in full are chosen so that as many cells
    as possible have one to open. If traces were ``recorded`` against their student, a map below shows its tokens by
    their entropy and the teacher's divergence.

    Args:
        traces: At most 20,000.
        by: What a row is: ``suite``, ``level``, ``student``, ``teacher``, or one label per trace (``read_labelled``).
        name: What a label is, in a word.
        full: The number of traces in full at most (and at most 200,000 tokens of them).
        movie: Rows are suites, and a slider goes through the groups, such as the steps of a training.

    Raises:
        ValueError: No trace or too many, more than 100 rows, an unknown ``by``, not one label per trace, or a movie by
            suite.

    >>> from relaylab.trace import Call
    >>> call = Call(1, 2, 1, 1, 1)
    >>> atlas([Trace("2*3?", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [call], correct=True)])
    Call atlas: 1 trace in 1 row by suite, 1 answered call. Half of the calls begin by 33 % of the answer.
    """
    traces = list(traces)
    if not traces:
        raise ValueError("there is no trace to draw: give a list of traces, see read_labelled for those of a folder")
    if len(traces) > MAX_TRACES:
        raise ValueError(f"{len(traces):,} traces are more than the {MAX_TRACES:,} that a page carries; draw fewer")
    if full < 0:
        raise ValueError(f"full is {full}; it is a number of traces, 0 or more")
    name = by if isinstance(by, str) else name
    if movie and name == "suite":
        raise ValueError("a movie goes through groups other than suites; give labels, see read_labelled")
    groups, group = _indexed(_labels(traces, by))
    if len(groups) > MAX_GROUPS:
        raise ValueError(f"{len(groups)} rows by {name} are more than {MAX_GROUPS}; label the traces more coarsely")
    suites, suite = _indexed([BY["suite"](t) for t in traces])
    lines = [_lines(t) for t in traces]
    outcome = {True: 0, False: 1, None: 2}
    table = [(len(t.completion_ids), len(t.calls), outcome[t.correct], _short(t.id)) for t in traces]
    table = pd.DataFrame(table, columns=["tokens", "calls", "outcome", "id"]).to_dict("list")
    table |= {"group": group, "suite": suite, "lines": [last for _, last in lines]}
    calls = [
        (c.start, c.end + c.delivered - c.start, c.delivered, int(c.status == "answered"))
        for t in traces
        for c in t.calls
    ]
    calls = pd.DataFrame(calls, columns=["start", "length", "delivered", "answered"]).to_dict("list")
    calls["line"] = [line for own, _ in lines for line in own]
    cells = [_cells({k: table[k][t] for k in ROWS}, trace, lines[t][0]) for t, trace in enumerate(traces)]
    chosen = _chosen(cells, table["tokens"], most=full, tokens=FULL_TOKENS)
    state = {"name": _short(name), "columns": COLUMNS, "groups": groups, "suites": suites, "outcomes": OUTCOMES}
    state |= {"traces": table, "calls": calls, "full": {t: player_state(traces[t]) for t in chosen}}
    points = _points(traces)
    state |= {"note": _note(cells, chosen), "movie": movie, "scores": _scores(traces, points)}
    label = _label(traces, f"{plural(len(groups), 'row')} by {state['name']}")
    rows = [_row(g, [t for t, k in zip(traces, group) if k == number]) for number, g in enumerate(groups)]
    words = html_table(pd.DataFrame(rows, columns=[state["name"], *WORDS]))
    words = f'<p>{html.escape(label)} {html.escape(state["note"])}</p><div class="rl-scroll">{words}</div>'
    words += _score_words(traces, points)
    return static_view("atlas", state, label=label, words=words)


def read_labelled(folder: str | Path, *, every: int = 1) -> tuple[list[Trace], list[Any]]:
    """The traces of all files of a folder, with the name of its file for each.

    If all files are of training steps, the labels are the numbers of the steps. Folders to read are ``rollouts`` of a
    training run and ``traces/SEED`` of an evaluation.

    Args:
        folder: Holds ``*.jsonl`` or ``*.jsonl.gz``.
        every: With 10, every tenth trace of a file, from the first on.

    Raises:
        ValueError: The folder has no such file, or ``every`` is below 1.

    >>> import tempfile
    >>> from relaylab.trace import TraceWriter
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step in (0, 10):
    ...     with TraceWriter(folder / f"{step:06d}.jsonl") as out:
    ...         out.write(Trace("q", [1]))
    >>> read_labelled(folder)[1]
    [0, 10]
    """
    if every < 1:
        raise ValueError(f"every is {every}; it is 1 for all traces, 2 for half of them, and so on")
    files = sorted([*Path(folder).glob("*.jsonl"), *Path(folder).glob("*.jsonl.gz")])
    if not files:
        raise ValueError(
            f"{folder} holds no file of traces (*.jsonl): name the folder `rollouts` of a training run, or "
            "`traces/SEED` of an evaluation"
        )
    stems = [file.name.removesuffix(".gz").removesuffix(".jsonl") for file in files]
    steps = [_STEP.fullmatch(stem) for stem in stems]
    names = [int(step[1]) if step and all(steps) else stem for step, stem in zip(steps, stems)]
    pairs = [(trace, name) for file, name in zip(files, names) for trace in islice(read_traces(file), 0, None, every)]
    return [trace for trace, _ in pairs], [name for _, name in pairs]


def _labels(traces: Sequence[Trace], by: str | Sequence[Any]) -> Sequence[Any]:
    if not isinstance(by, str):
        if len(by) != len(traces):
            raise ValueError(f"by has {len(by)} labels for {len(traces)} traces; give one for each")
        return by
    if by not in BY:
        raise ValueError(f"by is {by!r}; there are {', '.join(BY)}, or give a label for each trace")
    return [BY[by](trace) for trace in traces]


def _indexed(labels: Sequence[Any]) -> tuple[list[str], list[int]]:
    """The different labels as they are shown, numbers sorted; and for each trace the number of its label."""
    numbers = all(isinstance(label, Real) for label in labels)
    series = pd.Series(labels, dtype=None if numbers else object)
    place, different = pd.factorize(series, sort=numbers, use_na_sentinel=False)
    return [_short("no label" if pd.isna(label) else str(label)) for label in different], place.tolist()


def _short(text: str) -> str:
    """A name, which may be of anyone's making, as it is shown."""
    return visible(cut(text, 80))


def _lines(trace: Trace) -> tuple[list[int], int]:
    """The line of the answer in which each call begins, from 0; and the number of its lines."""
    text, _, begins = answer_text(trace)
    lines = [text.count("\n", 0, begin) for begin in begins]
    return lines, max([text.rstrip("\n").count("\n"), *lines]) + 1


def _cells(rows: dict[str, int], trace: Trace, lines: Sequence[int]) -> set[Hashable]:
    """The cells that list a trace, for every choice of rows and columns: (rows, row, columns, column)."""
    columns = {("position", _part(trace, call)) for call in trace.calls}
    columns |= {("line", min(line, COLUMNS - 1)) for line in lines}
    return {(kind, row, *column) for kind, row in rows.items() for column in columns or {("no call", 0)}}


def _part(trace: Trace, call: Call) -> int:
    return min(COLUMNS - 1, call.start * COLUMNS // max(1, len(trace.completion_ids)))


def _chosen(cells: Sequence[set[Hashable]], sizes: Sequence[int], *, most: int, tokens: int) -> list[int]:
    """The traces to keep in full: again and again the one with the most cells that have none yet, then one, and so on.

    Gains only fall while traces are taken, so a gain is computed again only when its trace seems to be the best.
    """
    has: Counter[Hashable] = Counter()

    def entry(t: int) -> tuple[float, int]:
        return -fsum(100.0 ** -has[cell] for cell in cells[t]), t  # fsum: sets have no order

    heap, chosen = [entry(t) for t in range(len(cells))], []
    heapify(heap)
    while heap and len(chosen) < most:
        _, t = heappop(heap)
        if sizes[t] > tokens:
            continue
        if heap and (now := entry(t)) > heap[0]:
            heappush(heap, now)
            continue
        chosen.append(t)
        tokens -= sizes[t]
        has.update(cells[t])
    return chosen


def _note(cells: Sequence[set[Hashable]], chosen: Sequence[int]) -> str:
    """How many traces can be opened, and whether each cell has one."""
    if len(chosen) == len(cells):
        return "All traces can be opened."
    every, some = set().union(*cells), set().union(*(cells[t] for t in chosen))
    share = "every cell has one" if every == some else f"{len(some):,} of {len(every):,} cells have one"
    return (
        f"{len(chosen):,} of the {len(cells):,} traces are in this page in full and can be opened. They are chosen so "
        f"that as many cells as possible have one: {share}. Of the others the page knows only where their calls are."
    )


def _label(traces: Sequence[Trace], rows: str) -> str:
    places = sorted(100 * c.start / len(t.completion_ids) for t in traces for c in t.answered if t.completion_ids)
    half = f" Half of the calls begin by {places[(len(places) - 1) // 2]:.0f} % of the answer." if places else ""
    return f"Call atlas: {plural(len(traces), 'trace')} in {rows}, {plural(len(places), 'answered call')}.{half}"


def _row(name: str, traces: Sequence[Trace]) -> list[str]:
    """A row at the start, in words: its traces, and where most of them call."""
    n, part = len(traces), 100 // COLUMNS
    graded = [t.correct for t in traces if t.correct is not None]
    right = f"{100 * sum(graded) / len(graded):.1f}" if graded else ""
    hits = Counter(place for t in traces for place in {_part(t, call) for call in t.answered})
    place, most = min(hits.items(), key=lambda item: (-item[1], item[0]), default=(0, 0))
    where = f"{part * place} to {part * place + part} %: {100 * most / n:.0f} % of the traces" if most else ""
    calling, calls = sum(bool(t.answered) for t in traces), sum(len(t.answered) for t in traces)
    return [name, f"{n:,}", right, f"{100 * calling / n:.1f}", f"{calls / n:.2f}", where]


def _points(traces: Sequence[Trace]) -> pd.DataFrame:
    """The student's tokens that have both an entropy and a divergence: ``trace`` and ``at`` say where."""
    rows = [
        (t, i, entropy, divergence)
        for t, trace in enumerate(traces)
        for i, (writer, entropy, divergence) in enumerate(
            zip(trace.source, trace.entropies or (), trace.divergences or ())
        )
        if writer == STUDENT and entropy is not None and divergence is not None and math.isfinite(entropy + divergence)
    ]
    points = pd.DataFrame(rows, columns=["trace", "at", "entropy", "divergence"])
    return points.assign(divergence=points["divergence"].clip(lower=0))


def _scores(traces: Sequence[Trace], points: pd.DataFrame) -> dict[str, Any] | None:
    """The columns of the map of scores: every k-th point, so that a page carries them."""
    if points.empty:
        return None
    every = -(-len(points) // MAX_POINTS)
    drawn = points[::every].round(4)
    pairs = [(traces[t], i) for t, i in zip(drawn["trace"], drawn["at"])]
    token = [visible(cut(t.pieces[i], 20), "\n") for t, i in pairs]
    top = [visible(cut((t.teacher_top and t.teacher_top[i]) or "", 20), "\n") for t, i in pairs]
    state = {"total": len(points), "every": every, "mark": MARK, "token": token, "top": top}
    return state | {str(name): drawn[name].tolist() for name in drawn}


def _score_words(traces: Sequence[Trace], points: pd.DataFrame) -> str:
    """The map of scores as a table of its corners, and the tokens of which the student is most wrongly sure."""
    if points.empty:
        return ""
    unsure, disagrees = points["entropy"] > MARK, points["divergence"] > MARK
    rows = []
    for (s, d), words in CORNERS.items():
        n = ((unsure == s) & (disagrees == d)).sum()
        rows.append((words, f"{n:,}", f"{100 * n / len(points):.1f}"))
    table = html_table(pd.DataFrame(rows, columns=[f"tokens (mark: {MARK} nats)", "number", "%"]))
    wrong = []
    for p in each_row(points[~unsure & disagrees].nlargest(5, "divergence")):
        where = f"token {p.at + 1} of {_short(traces[p.trace].id) or f'trace {p.trace + 1}'}"
        numbers = f"entropy {p.entropy:.3f}, divergence {p.divergence:.3f} nats"
        wrong.append(f"“{_short(traces[p.trace].pieces[p.at])}”, {where}: {numbers}")
    last = (
        f"<p>The largest divergences where the student is sure: {html.escape('; '.join(wrong))}.</p>" if wrong else ""
    )
    return f'<div class="rl-scroll">{table}</div>{last}'
