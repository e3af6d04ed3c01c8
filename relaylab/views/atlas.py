"""The call atlas: where the calls of thousands of traces are, as a heat map, and a click through to the traces.

Rows are groups of traces (training steps, methods, suites), columns where in its answer a call begins: 20 parts of its
tokens, or its lines, each a step of the solution as in ``evaluation/placement.py``. The page counts and filters by
itself (``atlas.js``, ``frontend.py``): it has the calls of every trace as a few numbers, and some traces in full, for
the player. What kinds of step are delegated, and which calls mattered, is ``placement_figures.py``'s.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any

from relaylab.evaluation.placement import calls_frame
from relaylab.trace import Trace, read_traces
from relaylab.views.frontend import fragment
from relaylab.views.player import _data
from relaylab.views.theme import Html
from relaylab.views.trace_view import _count, _cut, trace_summary, visible

COLUMNS = 20  # parts of an answer; and lines, the last for all that come later
MOST_TRACES, MOST_GROUPS = 20_000, 100
FULL_TOKENS = 200_000  # of all traces in full together: about 10 MB
OUTCOMES = ("right", "wrong", "not graded")
BY = {
    "suite": lambda t: t.problem.get("suite") or "no suite",
    "level": lambda t: t.problem.get("level") or "no level",
    "student": lambda t: t.student or "no name",
    "teacher": lambda t: t.teacher or "no name",
}
_STEP = re.compile(r"([0-9]+)(-[0-9]+)?")  # the file of a training step: its number, and the process if not the first


def atlas(traces: Iterable[Trace], *, by: str | Sequence[Any] = "suite", name: str = "group", full: int = 250) -> Html:
    """The heat map of where calls begin, as HTML that counts by itself.

    by: what a row is: ``suite``, ``level``, ``student``, ``teacher``; or a label for each trace, which ``name`` says in
    a word, see ``read_labelled``. Rows are in the order of first appearance, numbers in theirs. full: at most so many
    traces are in the page as a whole (and at most 200,000 tokens of them), chosen so that as many cells as possible
    have one to open in the player; of the others the page knows where their calls are.

    >>> from relaylab.trace import Call
    >>> call = Call(1, 2, 1, 1, 1)
    >>> atlas([Trace("2*3?", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [call], correct=True)])
    Call atlas: 1 trace in 1 row by suite, 1 answered call. Half of the calls begin by 33 % of the answer.

    Raises ValueError without traces, for an unknown ``by``, for labels that are not one a trace, for ``full`` below 0,
    and for more than 20,000 traces or 100 rows.
    """
    traces = list(traces)
    if not traces:
        raise ValueError("there is no trace to draw: give a list of traces, see read_labelled for those of a folder")
    if len(traces) > MOST_TRACES:
        raise ValueError(f"{len(traces):,} traces are more than the {MOST_TRACES:,} that a page carries; draw fewer")
    if full < 0:
        raise ValueError(f"full is {full}; it is a number of traces, 0 or more")
    name = by if isinstance(by, str) else name
    groups, group = _indexed(_labels(traces, by))
    if len(groups) > MOST_GROUPS:
        raise ValueError(f"{len(groups)} rows by {name} are more than {MOST_GROUPS}; label the traces more coarsely")
    suites, suite = _indexed([BY["suite"](t) for t in traces])
    frame = calls_frame(traces)
    lines = [t.teacher_view.rstrip("\n").count("\n") + 1 for t in traces]
    for trace, line in zip(frame["trace"], frame["line"]):
        lines[trace] = max(lines[trace], line + 1)
    table = {
        "group": group,
        "suite": suite,
        "outcome": [{True: 0, False: 1, None: 2}[t.correct] for t in traces],
        "tokens": [len(t.completion_ids) for t in traces],
        "lines": lines,
        "calls": [len(t.calls) for t in traces],
        "id": [_short(t.id) for t in traces],
    }
    calls = {key: frame[key].tolist() for key in ("start", "line", "delivered")}
    calls["answered"] = (frame["status"] == "answered").astype(int).tolist()
    calls["length"] = [c.end + c.delivered - c.start for t in traces for c in t.calls]
    cells = _cells(table, calls)
    chosen = _chosen(cells, table["tokens"], most=full, tokens=FULL_TOKENS)
    said = _said(traces, len(groups), name, calls, table)
    data = {
        "name": _short(name),
        "columns": COLUMNS,
        "groups": groups,
        "suites": suites,
        "outcomes": OUTCOMES,
        "traces": table,
        "calls": calls,
        "full": {t: _data(traces[t]) | {"summary": trace_summary(traces[t])} for t in chosen},
        "note": _note(cells, chosen),
    }
    words = f"<p>{html.escape(said)} {html.escape(data['note'])}</p>{_words(data)}"
    return Html(fragment("atlas", data, label=said, words=words, uses=["player"]), said)


def read_labelled(folder: str | Path, *, every: int = 1) -> tuple[list[Trace], list[Any]]:
    """The traces of all files of a folder, and for each the name of its file: the number of a training step where all
    files are of steps.

    For ``rollouts`` in the folder of a training run, and ``traces/SEED`` in that of an evaluation (a file a method).
    every: with 10, each tenth trace of a file, from the first on.

    >>> import tempfile
    >>> from relaylab.trace import TraceWriter
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step in (0, 10):
    ...     with TraceWriter(folder / f"{step:06d}.jsonl") as out:
    ...         out.write(Trace("q", [1]))
    >>> read_labelled(folder)[1]
    [0, 10]

    Raises ValueError where the folder has no such file, and for ``every`` below 1.
    """
    if every < 1:
        raise ValueError(f"every is {every}; it is 1 for all traces, 2 for half of them, and so on")
    files = sorted(Path(folder).glob("*.jsonl"))
    if not files:
        raise ValueError(
            f"{folder} holds no file of traces (*.jsonl): name the folder `rollouts` of a training run, or "
            "`traces/SEED` of an evaluation"
        )
    steps = [_STEP.fullmatch(file.stem) for file in files]
    names = [int(step[1]) for step in steps] if all(steps) else [file.stem for file in files]
    found = [(trace, name) for file, name in zip(files, names) for trace in islice(read_traces(file), 0, None, every)]
    return [trace for trace, _ in found], [name for _, name in found]


def _labels(traces: Sequence[Trace], by: str | Sequence[Any]) -> list[Any]:
    if isinstance(by, str):
        if by not in BY:
            raise ValueError(f"by is {by!r}; there are {', '.join(BY)}, or give a label for each trace")
        return [BY[by](trace) for trace in traces]
    if len(by) != len(traces):
        raise ValueError(f"by has {len(by)} labels for {len(traces)} traces; give one for each")
    return list(by)


def _indexed(labels: Sequence[Any]) -> tuple[list[str], list[int]]:
    """The labels that there are, as they are shown, and of each trace which."""
    found = list(dict.fromkeys(labels))
    if all(isinstance(label, Real) for label in found):
        found.sort()
    place = {label: k for k, label in enumerate(found)}
    return [_short(str(label)) for label in found], [place[label] for label in labels]


def _short(text: str) -> str:
    """Of a name, which may be of anyone's making, what is shown."""
    return visible(_cut(text, 80))


def _spans(counts: Sequence[int]) -> Iterable[tuple[int, range]]:
    """Of each trace the numbers of its calls, which stand one trace behind the other."""
    begin = 0
    for t, count in enumerate(counts):
        yield t, range(begin, begin + count)
        begin += count


def _cells(table: dict[str, list], calls: dict[str, list]) -> list[set[Hashable]]:
    """Of each trace the cells that list it, whatever the rows and columns are: (rows, row, columns, column)."""
    found = []
    for t, span in _spans(table["calls"]):
        columns = {("position", _part(calls["start"][c], table["tokens"][t])) for c in span}
        columns |= {("line", min(calls["line"][c], COLUMNS - 1)) for c in span}
        columns = columns or {("no call", 0)}
        found.append({(rows, table[rows][t], *column) for rows in ("group", "suite", "outcome") for column in columns})
    return found


def _part(start: int, tokens: int) -> int:
    return min(COLUMNS - 1, start * COLUMNS // max(1, tokens))


def _chosen(cells: Sequence[set[Hashable]], sizes: Sequence[int], *, most: int, tokens: int) -> list[int]:
    """The traces to keep whole: each time the one that has the most cells which have none yet, then which have one ...

    Gains only fall while traces are taken, so one is computed anew only where its trace seems to be the best.
    """
    has: Counter[Hashable] = Counter()

    def entry(t: int) -> tuple[float, int]:
        return -sum(100.0 ** -has[cell] for cell in cells[t]), t

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
    every, some = set().union(*cells), set().union(*(cells[t] for t in chosen))
    share = "every cell has" if every == some else f"{len(some):,} of {len(every):,} cells have"
    if len(chosen) == len(cells):
        return "All traces can be opened."
    return (
        f"{len(chosen):,} of the {len(cells):,} traces are in this page in full and can be opened; they are chosen so "
        f"that as many cells as possible have one: {share}. Of the others only the places of their calls are here."
    )


def _said(traces: Sequence[Trace], rows: int, name: str, calls: dict[str, list], table: dict[str, list]) -> str:
    places = sorted(
        100 * calls["start"][c] / table["tokens"][t]
        for t, span in _spans(table["calls"])
        for c in span
        if calls["answered"][c] and table["tokens"][t]
    )
    half = f" Half of the calls begin by {places[(len(places) - 1) // 2]:.0f} % of the answer." if places else ""
    return (
        f"Call atlas: {_count(len(traces), 'trace')} in {_count(rows, 'row')} by {_short(name)}, "
        f"{_count(len(places), 'answered call')}.{half}"
    )


def _words(data: dict[str, Any]) -> str:
    """The view as it begins, as a table: of each row its traces, and where most of them call."""
    table, calls, rows, part = data["traces"], data["calls"], [], 100 // COLUMNS
    traces, right, called = Counter(table["group"]), Counter(), Counter()
    hits: dict[int, Counter[int]] = {k: Counter() for k in range(len(data["groups"]))}
    answered: Counter[int] = Counter()
    for t, span in _spans(table["calls"]):
        g, mine = table["group"][t], [c for c in span if calls["answered"][c]]
        right[g] += table["outcome"][t] == 0
        called[g] += bool(mine)
        answered[g] += len(mine)
        hits[g].update({_part(calls["start"][c], table["tokens"][t]) for c in mine})
    for g, label in enumerate(data["groups"]):
        place, most = max(hits[g].items(), key=lambda item: (item[1], -item[0]), default=(None, 0))
        where = (
            ""
            if place is None
            else f"{part * place} to {part * place + part} %: {100 * most / traces[g]:.0f} % of the traces"
        )
        cells = (f"{traces[g]:,}", f"{100 * right[g] / traces[g]:.1f}", f"{100 * called[g] / traces[g]:.1f}")
        cells += (f"{answered[g] / traces[g]:.2f}", where)
        rows.append(f'<tr><th scope="row">{html.escape(label)}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>')
    heads = (data["name"], "traces", "right (%)", "with an answered call (%)", "answered calls a trace")
    heads += ("part of the answer where most traces call",)
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in heads)
    return f'<div class="rl-scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
