"""A trace for the eye: HTML for notebooks, text for terminals, one line for logs. Reads Traces, imports no torch.

Whatever a model wrote is hostile until shown otherwise: it is escaped, laid out apart from its surroundings, and
characters that steer a terminal or a text layout (escape codes, NUL, right-to-left overrides, invisible ones) appear
as Python writes them, ``\\x1b``. The HTML needs no script, network or font. Colours never speak alone: the text of the
teacher is underlined and shaded, a command is boxed.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import sys
from collections.abc import Iterator

from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace
from relaylab.views.theme import ROLES, page_css

STOP_WORDS = {
    "end": "ended by the student",
    "teacher_end": "ended by the teacher",
    "length": "cut at the limit of tokens",
    "context": "cut, the context was full",
    "excluded": "given up after a teacher failure",
    "interrupted": "interrupted",
    "": "reason of the end not recorded",
}
STATUS_WORDS = {
    "failed": "failed: the teacher could not",
    "refused": "refused: a cap left nothing to grant",
    "empty": "empty: no number in the command",
    "malformed": "malformed: not a number",
    "zero": "zero tokens asked for",
    "too_large": "too large a number",
    "unclosed": "unclosed: the tag never ends",
}
COLUMNS = ("call", "at token", "asked", "granted", "delivered", "the teacher wrote", "result", "teacher", "time")
NUMERIC, WROTE = (0, 1, 2, 3, 4, 8), 5
MAX_ROWS = 200  # of the table of calls; the rest is counted
# Of what scrolls: keys reach it, and JupyterLab, which would go to another cell for an arrow, leaves them to it.
_SCROLLS = 'tabindex="0" data-lm-suppress-shortcuts="true"'

# Controls, bidirectional and other invisible formatting, fillers, lone surrogates, non-characters, tag characters. The
# joiners U+200C and U+200D stay: emoji and several scripts need them.
_HOSTILE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)


def visible(text: str, keep: str = "") -> str:
    """``text`` with every character that could steer a terminal or hide written out, those in ``keep`` left alone.

    >>> print(visible("a\\x1b[31m\\u202eb\\n"))
    a\\x1b[31m\\u202eb\\n
    """
    return _HOSTILE.sub(lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], text)


def trace_summary(trace: Trace) -> str:
    """One line: outcome, tokens, calls, share of the teacher, why it stopped.

    >>> trace_summary(Trace("2*3?", [1], [5, 6, 7, 8], "scct", ["=", "<call>1", "</call>", "6"], [Call(1, 3, 1, 1, 1)],
    ...                     stop="end", correct=True, id="q7"))
    'q7: correct, 4 tokens, 1 call, call ratio 25.0 %, ended by the student'
    """
    name = f"{visible(trace.id)}: " if trace.id else ""
    outcome = {True: "correct", False: "wrong", None: "not graded"}[trace.correct]
    tokens = _count(len(trace.completion_ids), "token")
    return f"{name}{outcome}, {tokens}, {_calls(trace)}, call ratio {_percent(trace)}, {_stop(trace)}"


def trace_text(trace: Trace, *, color: bool | None = None, width: int | None = None) -> str:
    """The completion for a terminal: teacher bold in «», commands dim, line breaks as ↵; then the calls and a summary.

    ``color`` and ``width`` (characters) are those of the standard output where not given; NO_COLOR is heeded.

    >>> t = Trace("2*3?", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [Call(1, 2, 1, 1, 1)], stop="end")
    >>> print(trace_text(t, color=False, width=80).splitlines()[0])
    =<call>1</call>«6»
    """
    # Imported here: a notebook, which shows traces through trace_html, should not pay for it.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if color is None:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = width or shutil.get_terminal_size().columns
    system = "256" if color else None
    console = Console(
        width=width,
        force_terminal=color,
        color_system=system,
        no_color=not color,
        legacy_windows=False,
        force_jupyter=False,
    )
    styles = {STUDENT: "", TEACHER: f"bold {ROLES[TEACHER].mark}", COMMAND: "dim"}
    strip = Text(overflow="fold")
    for source, _, start, end in turns(trace):
        role, text = ROLES[source], "".join(trace.pieces[start:end])
        strip.append(role.open + visible(text, "\n\t").replace("\n", "↵\n") + role.close, styles[source])
    with console.capture() as capture:
        console.print(strip)
        if trace.calls:
            columns, rows, notes = _call_table(trace)
            shown = [j for j, i in enumerate(columns) if i != WROTE]  # it stands in the text above
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for i in (columns[j] for j in shown):
                right = i in NUMERIC
                table.add_column(COLUMNS[i], justify="right" if right else "left", no_wrap=right, overflow="fold")
            for row in rows:
                table.add_row(*(Text(row[j]) for j in shown))
            console.print(table)
            for k, note in notes.items():
                console.print(Text(f"call {k + 1}: {note}"))
            if len(trace.calls) > MAX_ROWS:
                console.print(f"and {len(trace.calls) - MAX_ROWS:,} more calls")
        console.print(Text(trace_summary(trace)))
    return capture.get()


def trace_html(trace: Trace) -> str:
    """A self-contained HTML fragment: question and outcome, every token coloured by its writer, a table of the calls.

    >>> t = Trace("2*3?", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [Call(1, 2, 1, 1, 1)], stop="end")
    >>> '<mark class="rlt-t" data-call="1">' in trace_html(t)
    True
    """
    return (
        f'<section class="rlt" aria-label="Relay trace. {_escape(trace_summary(trace))}"><style>{_STYLE}</style>'
        f"{_header(trace)}{_legend(trace)}{_strip(trace)}{_calls_html(trace)}</section>"
    )


def turns(trace: Trace) -> Iterator[tuple[str, int | None, int, int]]:
    """Runs of tokens of one source within one call, or outside of all: (source, index of the call, start, end).

    >>> list(turns(Trace("q", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [Call(1, 2, 1, 1, 1)])))
    [('s', None, 0, 1), ('c', 0, 1, 2), ('t', 0, 2, 3)]
    """
    owner: list[int | None] = [None] * len(trace.source)
    for k, call in enumerate(trace.calls):
        end = call.end + call.delivered
        owner[call.start : end] = [k] * (end - call.start)
    start = 0
    for i in range(1, len(owner) + 1):
        if i == len(owner) or (trace.source[i], owner[i]) != (trace.source[start], owner[start]):
            yield trace.source[start], owner[start], start, i
            start = i


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _calls(trace: Trace) -> str:
    lost = len(trace.calls) - len(trace.answered)
    return _count(len(trace.calls), "call") + (f" ({lost:,} not answered)" if lost else "")


def _percent(trace: Trace) -> str:
    return f"{trace.call_ratio * 100:.1f} %"


def _stop(trace: Trace) -> str:
    return STOP_WORDS.get(trace.stop) or visible(trace.stop)


def _result(call: Call) -> str:
    if call.status != "answered":
        return STATUS_WORDS.get(call.status, call.status)
    ends = {"stop": "answered, and ended the text", "length": "answered in full"}
    return ends.get(call.finish_reason or "", "answered" + (f", {call.finish_reason}" if call.finish_reason else ""))


def _call_table(trace: Trace) -> tuple[list[int], list[list[str]], dict[int, str]]:
    """Of the calls, safe for a terminal: columns that hold anything (indices of COLUMNS), cells, notes to some rows."""
    rows, notes = [], {}
    for k, call in enumerate(trace.calls[:MAX_ROWS]):
        wrote = "".join(trace.pieces[call.end : call.end + call.delivered])
        other = f" ({call.written} of its own)" if call.written not in (0, call.delivered) else ""
        if note := "; ".join(filter(None, ("forced, not the student's own" if call.forced else "", call.error))):
            notes[k] = visible(_cut(note, 300))
        cells = (
            str(k + 1),
            f"{call.start:,}",
            "-" if call.requested is None else f"{call.requested:,}",
            f"{call.granted:,}",
            f"{call.delivered:,}{other}",
            _cut(wrote, 60),
            _result(call),
            call.teacher or "",
            _seconds(call.latency),
        )
        rows.append([visible(cell) for cell in cells])
    used = [i for i in range(len(COLUMNS)) if i < 5 or any(row[i] for row in rows)]
    return used, [[row[i] for i in used] for row in rows], notes


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1e3:.1f} ms"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _escape(text: str, keep: str = "") -> str:
    """HTML of a text: markup escaped, steering characters as chips."""
    return _HOSTILE.sub(
        lambda m: m[0] if m[0] in keep else f'<i class="rlt-x">{ascii(m[0])[1:-1]}</i>', html.escape(text)
    )


def _header(trace: Trace) -> str:
    question = str(trace.problem.get("question") or trace.prompt)
    outcomes = {True: ("good", "✓ correct"), False: ("bad", "✗ wrong"), None: ("muted", "not graded")}
    kind, outcome = outcomes[trace.correct]
    answer = trace.problem.get("answer")
    facts = [
        f'<b class="rlt-{kind}">{outcome}</b>' + (f" (reference {_escape(str(answer))})" if answer is not None else ""),
        f"<b>{len(trace.completion_ids):,}</b> {'token' if len(trace.completion_ids) == 1 else 'tokens'}",
        "<b>{}</b> {}".format(*_calls(trace).split(" ", 1)),
        f"<b>{_percent(trace)}</b> written by the teacher (call ratio)",
        _escape(_stop(trace)),
    ]
    run = [f"id {trace.id}" if trace.id else "", f"seed {trace.seed}" if trace.seed is not None else ""]
    run = [_escape(part) for part in (*run, f"temperature {trace.temperature:g}") if part]
    return (
        f'<div class="rlt-q" dir="auto" {_SCROLLS} role="group" aria-label="Question">'
        f"{_escape(question, keep=chr(10))}</div>"
        f'<ul class="rlt-facts">{"".join(f"<li>{fact}</li>" for fact in facts)}'
        f'<li class="rlt-muted">{" · ".join(run)}</li></ul>'
    )


def _legend(trace: Trace) -> str:
    """Who looks how and wrote how much, over a map of the whole completion."""
    samples = {STUDENT: "text", TEACHER: "text", COMMAND: "&lt;call&gt;n&lt;/call&gt;"}
    words = {STUDENT: trace.student, TEACHER: trace.teacher, COMMAND: "asks for n tokens"}
    items = (
        f"<li>{_tag(source, samples[source])} {role.name}{f': {_escape(words[source])}' if words[source] else ''}, "
        f"<b>{_count(trace.count(source), 'token')}</b></li>"
        for source, role in ROLES.items()
    )
    tops = {STUDENT: 4, COMMAND: 2, TEACHER: 0}  # of ten, so that the bars differ in height as well as in colour
    spans = dict.fromkeys(ROLES, "")
    for source, _, start, end in turns(trace):
        spans[source] += f"M{start} {tops[source]}h{end - start}V{10 - tops[source]}H{start}z"
    paths = "".join(
        f'<path class="rlt-m{source}" fill="{ROLES[source].mark}" d="{d}"/>' for source, d in spans.items() if d
    )
    return (
        f'<ul class="rlt-legend">{"".join(items)}</ul>'
        f'<svg class="rlt-map" viewBox="0 0 {max(1, len(trace.source))} 10" preserveAspectRatio="none" '
        f'width="100%" height="12" aria-hidden="true">{paths}</svg>'
    )


def _tag(source: str, inner: str, classes: str = "", attributes: str = "") -> str:
    # mark and code, not span: the difference survives where a page strips styles, as untrusted notebooks do.
    name = {STUDENT: "span", TEACHER: "mark", COMMAND: "code"}[source]
    return f'<{name} class="rlt-{source}{classes}"{attributes}>{inner}</{name}>'


def _strip(trace: Trace) -> str:
    parts = []
    for source, k, start, end in turns(trace):
        writer, classes, attributes = ROLES[source].name, "", ""
        if k is not None:
            lost = trace.calls[k].status != "answered"
            classes = " rlt-no" if lost else ""
            attributes = f' data-call="{k + 1}{" ✗" if lost else ""}"'
            writer += f", call {k + 1}{' (not answered)' if lost else ''}"
        spoken = f'<span class="rlt-sr">[{writer}] </span>'
        tokens = "".join(_token(trace, i, writer) for i in range(start, end))
        parts.append(_tag(source, spoken + tokens, classes, attributes))
    body = "".join(parts) or '<span class="rlt-sr">[empty]</span>'
    label = f"Completion, {_count(len(trace.source), 'token')}"
    return f'<pre class="rlt-strip" dir="ltr" {_SCROLLS} role="group" aria-label="{label}">{body}</pre>'


def _token(trace: Trace, i: int, writer: str) -> str:
    piece = trace.pieces[i]
    title = f"“{_cut(piece, 40)}” · token {i} · id {trace.completion_ids[i]} · {writer}"
    if trace.logprobs and (value := trace.logprobs[i]) is not None:
        title += f" · log-prob {value:.3f}"
    if trace.entropies and (value := trace.entropies[i]) is not None:
        title += f" · entropy {value:.3f} nats"
    text = _escape(piece, "\n\t").replace("\n", '<i class="rlt-n"></i>\n')
    return f'<span title="{html.escape(visible(title))}"{"" if piece else " class=rlt-0"}>{text}</span>'


def _calls_html(trace: Trace) -> str:
    if not trace.calls:
        return '<p class="rlt-muted">The student makes no call.</p>'
    columns, rows, notes = _call_table(trace)
    align = [' class="rlt-r"' if i in NUMERIC else "" for i in columns]
    head = "".join(f'<th scope="col"{a}>{COLUMNS[i]}</th>' for a, i in zip(align, columns, strict=True))
    body = ""
    for k, row in enumerate(rows):
        cells = "".join(f"<td{a}>{html.escape(cell)}</td>" for a, cell in zip(align, row, strict=True))
        body += f"<tr{' class=rlt-noted' if k in notes else ''}>{cells}</tr>"
        if k in notes:
            body += f'<tr><td></td><td colspan="{len(row) - 1}">{html.escape(notes[k])}</td></tr>'
    more = f'<p class="rlt-muted">and {len(trace.calls) - MAX_ROWS:,} more</p>' if len(trace.calls) > MAX_ROWS else ""
    return (
        f'<div class="rlt-calls" {_SCROLLS} role="group" aria-label="Calls"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}"
    )


# `&` is the root's class three times: these rules must outweigh the notebook's own for mark, code, ul and table.
_STYLE = (
    page_css(".rlt.rlt.rlt")
    + """
&{display:block;box-sizing:border-box;max-width:78em;margin:.4em 0;padding:14px 18px 12px;
border:1px solid var(--rl-line);border-radius:10px;background:var(--rl-paper);color:var(--rl-ink);
font:14px/1.5 var(--rl-sans);text-align:left;contain:paint}
& *{box-sizing:border-box}
& .rlt-q{max-height:10.5em;overflow:auto;margin:0 0 8px;font-size:15px;font-weight:600;white-space:pre-wrap;
overflow-wrap:anywhere;unicode-bidi:isolate}
& ul{display:flex;flex-wrap:wrap;gap:2px 20px;margin:0 0 12px;padding:0;list-style:none}
& li{margin:0;padding:0;overflow-wrap:anywhere}
& .rlt-muted{color:var(--rl-muted)}
& .rlt-good{color:var(--rl-good)}
& .rlt-bad{color:var(--rl-bad)}
& .rlt-legend{margin:0 0 6px;font-size:13px;color:var(--rl-muted)}
& .rlt-map{display:block;width:100%;height:12px!important;margin:0 0 10px;overflow:visible}
& p{margin:10px 0 0}
& .rlt-strip{max-height:34em;margin:0;overflow:auto;padding:12px 14px;border:1px solid var(--rl-line);border-radius:6px;
background:var(--rl-paper);font:14px/1.95 var(--rl-mono);white-space:pre-wrap;overflow-wrap:anywhere;tab-size:4}
& .rlt-strip>*{unicode-bidi:isolate}
& mark,& code,& .rlt-s{padding:0;margin:0;border:0;font:inherit;font-family:var(--rl-mono);color:var(--rl-student);
background:none;white-space:pre-wrap;overflow-wrap:anywhere;box-decoration-break:clone;-webkit-box-decoration-break:clone}
& mark{padding:2px 0;font-weight:600;color:var(--rl-teacher);background:var(--rl-teacher-fill);
border-bottom:2px solid;border-color:var(--rl-teacher-edge)}
& code{padding:1px 2px;margin:0 2px;font-size:.88em;color:var(--rl-command);background:var(--rl-command-fill);
border:1px dashed;border-color:var(--rl-command-edge);border-radius:4px}
& .rlt-no{text-decoration:underline wavy 1px var(--rl-bad);text-underline-offset:3px}
& code.rlt-no{color:var(--rl-bad);background:none;border-color:var(--rl-bad);text-decoration:none}
& code[data-call]::before,& .rlt-no::before{font:600 11px/1.2 var(--rl-sans)}
& code[data-call]::before,& .rlt-no::before{content:attr(data-call);content:attr(data-call)/"";margin-right:3px;
padding:0 4px;border-radius:3px;color:var(--rl-paper);background:var(--rl-command)}
& .rlt-strip .rlt-no::before{background:var(--rl-bad)}
& mark>span+span,& code>span+span{box-shadow:inset 1px 0 color-mix(in srgb,currentColor 22%,transparent)}
& .rlt-strip [title]:hover{outline:2px solid;border-radius:2px}
& .rlt-n::before{content:"↵";content:"↵"/"";color:var(--rl-muted);font-style:normal;font-weight:400}
& .rlt-0::before{content:"∅";content:"∅"/"";font-size:.7em;color:var(--rl-muted)}
& .rlt-x{padding:0 2px;border-radius:3px;font:600 .82em var(--rl-mono);color:var(--rl-paper);background:var(--rl-muted);
white-space:nowrap}
& .rlt-sr{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap;
user-select:none}
& .rlt-calls{max-height:24em;overflow:auto;margin:12px 0 0}
& table{width:auto;min-width:0;margin:0;border-collapse:collapse;table-layout:auto;font-size:13px}
& th,& td{padding:4px 14px 4px 0;border:0;border-bottom:1px solid var(--rl-line);text-align:left;vertical-align:top;
white-space:normal;overflow-wrap:break-word;max-width:28em;background:none;color:inherit;font:13px/1.5 var(--rl-sans);
font-variant-numeric:tabular-nums}
& .rlt-noted td{border-bottom:0}
& [colspan]{padding-top:0;color:var(--rl-muted);max-width:none}
& thead th{font-weight:600;color:var(--rl-muted);white-space:nowrap}
& tr{background:none}
& .rlt-r{text-align:right;white-space:nowrap}
& .rlt-ms{fill:var(--rl-student);opacity:.28}
& .rlt-mt{fill:var(--rl-teacher-edge);stroke:var(--rl-teacher-edge);stroke-width:1px;vector-effect:non-scaling-stroke}
& .rlt-mc{fill:var(--rl-command-edge);stroke:var(--rl-command-edge);stroke-width:1px;vector-effect:non-scaling-stroke}
""".replace("\n", "").replace("&", ".rlt.rlt.rlt")
)
