"""What a live view has found, as HTML without a script: traces side by side, each under what was done to get it."""

from __future__ import annotations

import html
from collections.abc import Sequence

from relaylab.trace import Trace
from relaylab.views.theme import page_css
from relaylab.views.trace_view import trace_html, visible

_STYLE = page_css(".rl-side") + (
    ".rl-side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26em,100%),1fr));gap:4px 14px;"
    "align-items:start;max-width:100%;font:14px/1.5 var(--rl-sans)}"
    ".rl-side>div{min-width:0}"
    ".rl-side h4{margin:8px 0 0;padding:0;font:600 14px/1.4 var(--rl-sans);overflow-wrap:anywhere;unicode-bidi:isolate}"
    ".rl-side p{margin:0;font-size:13px;overflow-wrap:anywhere;unicode-bidi:isolate}"
)


def side_by_side(runs: Sequence[tuple[str, str, Trace]]) -> str:
    """(heading, how it was made, trace) of each run; as many columns as the page has room for.

    >>> side_by_side([("Run 1", "greedy", Trace("2*3?", [1], [5], "s", ["6"]))]).count("<h4>Run 1</h4><p>greedy</p>")
    1
    """
    parts = (
        f"<div><h4>{html.escape(visible(heading))}</h4><p>{html.escape(visible(how))}</p>{trace_html(trace)}</div>"
        for heading, how, trace in runs
    )
    return f'<div class="rl-side"><style>{_STYLE}</style>{"".join(parts)}</div>'
