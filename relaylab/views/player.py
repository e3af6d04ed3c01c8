"""The relay player: a trace token by token, played, stepped and scrubbed, the teacher's view beside the student's."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from relaylab.call_tag import OPEN, settled, visible
from relaylab.evaluation.learning import answer_text
from relaylab.trace import Call, Trace
from relaylab.views.theme import ROLES, Html
from relaylab.views.trace_view import call_facts, map_paths, question_text, trace_summary, turns
from relaylab.views.widget import static_view


def player(traces: Trace | Sequence[Trace]) -> Html:
    """The player of one trace, or of several to choose from.

    Keys in a strip: space plays and pauses, left and right step (with shift ten tokens), home and end, c and shift+c go
    to the next call and to the one before. Hover over a token to see its log-probability, entropy (nats) and call, and
    what the teacher thinks of it, if that was ``recorded``.

    Args:
        traces: One trace or a list of traces.

    Raises:
        ValueError: The list is empty.

    >>> player(Trace("2*3?", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [Call(1, 2, 1, 1, 1)], stop="end"))
    not graded, 3 tokens, 1 call, call ratio 33.3 %, ended by the student
    """
    traces = [traces] if isinstance(traces, Trace) else list(traces)
    if not traces:
        raise ValueError("there is no trace to play: give one trace or a list of traces")
    summaries = [trace_summary(trace) for trace in traces]
    label = "Relay player. " + (summaries[0] if len(traces) == 1 else f"{len(traces)} traces.")
    words = "".join(_words(trace, summary) for trace, summary in zip(traces, summaries))
    page = static_view("player", {"traces": [player_state(t) for t in traces]}, label=label, words=words)
    return Html(page.html, "\n".join(summaries))


def player_state(trace: Trace) -> dict[str, Any]:
    """A trace for the player: ``strip_state``, what the teacher sees where it differs, a map, and a summary."""
    text, begins, _ = answer_text(trace)
    seen = enumerate(zip(pairwise(begins), trace.pieces))
    view = {i: visible(text[a:b], "\n\t") for i, ((a, b), piece) in seen if text[a:b] != piece}
    return strip_state(trace) | {"view": view, "map": map_paths(trace), "summary": trace_summary(trace)}


def strip_state(trace: Trace) -> dict[str, Any]:
    """A trace for the strip of tokens (``strip.js``): text that is safe to lay out, numbers, and calls in words."""
    pieces = [visible(piece, "\n\t") for piece in trace.pieces]
    return {
        "question": visible(question_text(trace), "\n\t"),
        "source": trace.source,
        "ids": trace.completion_ids,
        "pieces": pieces,
        "rewritten": [i for i, (a, b) in enumerate(zip(pieces, trace.pieces)) if a != b],
        "logprobs": _numbers(trace.logprobs),
        "entropies": _numbers(trace.entropies),
        **({"alternatives": _alternatives(trace)} if trace.alternatives else {}),
        **({"teacher_logprobs": _numbers(trace.teacher_logprobs)} if trace.teacher_logprobs else {}),
        **({"divergences": _numbers(trace.divergences)} if trace.divergences else {}),
        **({"teacher_top": [t and visible(t, "\n\t") for t in trace.teacher_top]} if trace.teacher_top else {}),
        "calls": [
            {"start": c.start, "end": c.end, "delivered": c.delivered, "requested": c.requested}
            | {"lost": c.lost, "words": call_words(c)}
            for c in trace.calls
        ],
    }


def _alternatives(trace: Trace) -> list[list[tuple[str, float]] | None]:
    """The likeliest texts at each token, the likeliest first. Beginnings of a call count as one, but not within one."""
    inside = {i for call in trace.calls for i in range(call.start + 1, call.end)}
    rows = []
    for i, likely in enumerate(trace.alternatives or ()):
        begins = {text for text in likely or () if text == OPEN or settled(text) < len(text)}
        left_out = {OPEN} if i in inside else begins - {OPEN}
        shown = [(visible(text, "\n\t"), p) for text, p in (likely or {}).items() if text not in left_out]
        rows.append(None if likely is None else sorted(shown, key=lambda item: -item[1]))
    return rows


def call_words(call: Call) -> str:
    """A call in one line, safe to lay out."""
    facts = call_facts(call)
    requested = "no number" if call.requested is None else facts["requested"]
    parts = [f"asked for {requested}", f"granted {facts['granted']}", f"delivered {facts['delivered']}"]
    teacher = f"teacher {facts['teacher']}" if facts["teacher"] else ""
    parts += [facts["result"], teacher, facts["time"], facts["note"]]
    return visible("; ".join(filter(None, parts)))


def _numbers(values: Sequence[float | None] | None) -> list[float | None] | None:
    """Rounded to four digits. A value that is not finite is None, since JSON cannot hold it."""
    return None if values is None else [None if v is None or not math.isfinite(v) else round(v, 4) for v in values]


def _words(trace: Trace, summary: str) -> str:
    """A trace read out: question, outcome, and its text with the writer before each turn."""
    parts = []
    for source, call, start, end in turns(trace):
        writer = ROLES[source].name + ("" if call is None else f", call {call + 1}")
        parts.append(f"[{writer}] {visible(''.join(trace.pieces[start:end]), chr(10))}")
    calls = "".join(f"<li>Call {k + 1}: {html.escape(call_words(c))}</li>" for k, c in enumerate(trace.calls))
    return (
        f"<p><b>{html.escape(visible(question_text(trace), chr(10)))}</b></p><p>{html.escape(summary)}</p>"
        f'<p class="rl-text" tabindex="0">{html.escape(" ".join(parts))}</p><ul>{calls}</ul>'
    )
