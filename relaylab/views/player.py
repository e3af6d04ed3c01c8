"""The relay player: a trace token by token, played, stepped and scrubbed; the teacher's view beside the student's.

It is HTML that stands alone (``frontend.py``): no kernel and no network. ``view.trace_html`` is the picture of a trace
that needs no script; this one is for following a relay as it happens. Student, teacher and command tokens look as they
do there: plain, shaded and underlined, boxed with the number of the call.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from relaylab.call_tag import find_calls
from relaylab.trace import TEACHER, Call, Trace
from relaylab.views.frontend import fragment
from relaylab.views.theme import ROLES, Html
from relaylab.views.trace_view import _cut, _result, _seconds, trace_summary, turns, visible


def player(traces: Trace | Sequence[Trace]) -> Html:
    """One trace, or several to choose from. Text that models wrote shows as text, whatever it is.

    Keys, in one of the two strips: space plays and pauses, left and right step, with shift ten tokens, home and end,
    c and shift+c go to the next call and the one before. Hover over a token, or step to it, for its log-probability,
    its entropy (nats) and its call.

    >>> player(Trace("2*3?", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [Call(1, 2, 1, 1, 1)], stop="end"))
    not graded, 3 tokens, 1 call, call ratio 33.3 %, ended by the student

    Raises ValueError without any trace.
    """
    traces = [traces] if isinstance(traces, Trace) else list(traces)
    if not traces:
        raise ValueError("there is no trace to play: give one trace or a list of them")
    said = [trace_summary(trace) for trace in traces]
    data = {"traces": [_data(trace) | {"summary": line} for trace, line in zip(traces, said)]}
    label = "Relay player. " + (said[0] if len(said) == 1 else f"{len(said)} traces.")
    return Html(fragment("player", data, label=label, words="".join(map(_words, traces, said))), "\n".join(said))


def teacher_pieces(trace: Trace) -> list[str]:
    """What the teacher sees of each token; joined they are ``trace.teacher_view``.

    >>> teacher_pieces(Trace("q", [1], [5, 6, 7], "sct", ["=", "<call>1</call>.", "6"], [Call(1, 2, 1, 1, 1)]))
    ['=', '.', '6']
    """
    out = list(trace.pieces)
    for teachers, run in groupby(range(len(out)), key=lambda i: trace.source[i] == TEACHER):
        if teachers:
            continue
        turn = list(run)
        text = "".join(trace.pieces[i] for i in turn)
        gone = [(c.start, c.end) for c in find_calls(text) if c.closed]
        begin = k = 0
        for i in turn:
            end = begin + len(trace.pieces[i])
            while k < len(gone) and gone[k][1] <= begin:
                k += 1
            rest, at = "", begin
            for low, high in gone[k:]:
                if low >= end:
                    break
                rest, at = rest + text[at : max(at, low)], min(end, high)
            out[i] = rest + text[at:end]
            begin = end
    return out


def _data(trace: Trace) -> dict[str, Any]:
    """What the script gets of a trace: text that is safe to lay out, and tokens where the teacher sees less."""
    pieces = [visible(piece, "\n\t") for piece in trace.pieces]
    return {
        "question": visible(_question(trace), "\n\t"),
        "source": trace.source,
        "ids": trace.completion_ids,
        "pieces": pieces,
        "rewritten": [i for i, (a, b) in enumerate(zip(pieces, trace.pieces)) if a != b],
        "view": {i: visible(t, "\n\t") for i, t in enumerate(teacher_pieces(trace)) if t != trace.pieces[i]},
        "logprobs": _numbers(trace.logprobs),
        "entropies": _numbers(trace.entropies),
        "calls": [
            {"start": c.start, "end": c.end, "delivered": c.delivered, "lost": c.status != "answered"}
            | {"words": _call_words(c)}
            for c in trace.calls
        ],
    }


def _question(trace: Trace) -> str:
    return str(trace.problem.get("question") or trace.prompt)


def _numbers(values: Sequence[float | None] | None) -> list[float | None] | None:
    """To four digits; what is no finite number is unknown, since JSON has no word for it."""
    return values and [None if v is None or not math.isfinite(v) else round(v, 4) for v in values]


def _call_words(call: Call) -> str:
    own = f" ({call.written} of its own)" if call.written not in (0, call.delivered) else ""
    parts = [
        f"asked for {'no number' if call.requested is None else f'{call.requested:,}'}",
        f"granted {call.granted:,}",
        f"delivered {call.delivered:,}{own}",
        _result(call),
        f"teacher {call.teacher}" if call.teacher else "",
        _seconds(call.latency),
        "forced, not the student's own" if call.forced else "",
        _cut(call.error or "", 300),
    ]
    return visible("; ".join(filter(None, parts)))


def _words(trace: Trace, summary: str) -> str:
    """A trace read out: question, outcome, and its text with the writer before each turn."""
    said = []
    for source, call, start, end in turns(trace):
        who = ROLES[source].name + ("" if call is None else f", call {call + 1}")
        said.append(f"[{who}] {visible(''.join(trace.pieces[start:end]), chr(10))}")
    calls = "".join(f"<li>Call {k + 1}: {html.escape(_call_words(c))}</li>" for k, c in enumerate(trace.calls))
    return (
        f"<p><b>{html.escape(visible(_question(trace), chr(10)))}</b></p><p>{html.escape(summary)}</p>"
        f'<p class="rl-text" tabindex="0">{html.escape(" ".join(said))}</p><ul>{calls}</ul>'
    )
