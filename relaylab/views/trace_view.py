"""A trace as HTML for notebooks, as text for terminals, and as one line.

The text of models is hostile until proven otherwise. It is escaped, and characters that steer a terminal or a text
layout (escape codes, NUL, right-to-left overrides, invisible ones) are written out as Python writes them, ``\\x1b``.
The HTML needs no script, network or font. The teacher's text is underlined and shaded, and commands have a dashed
border, so that no information is carried by colour alone.
"""

from __future__ import annotations

import html
import os
import shutil
import sys
from collections.abc import Iterator

from relaylab.call_tag import HOSTILE, visible
from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace
from relaylab.views.theme import NO_MATH, ROLES, style

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
    "zero": "zero tokens requested",
    "too_large": "too large a number",
    "unclosed": "unclosed: the tag never ends",
    "unknown": "unknown: no teacher has this name",
}
FINISH_WORDS = {
    "stop": "answered, and ended the text",
    "length": "answered in full",
    "line": "answered, to the end of the line",
    "accepted": "let the student's text stand",
    "": "answered",
}
OUTCOME_WORDS = {True: "correct", False: "wrong", None: "not graded"}
LEFT_COLUMNS = ("the teacher wrote", "result", "teacher")  # of the table of calls; the other columns are numbers
ROOT = ".rl-trace" * 3  # three times: it must outweigh the notebook's own rules for mark and table
MAX_ROWS = 200  # of the table of calls
_TAGS = {STUDENT: "span", TEACHER: "mark", COMMAND: "code"}  # they differ even where a page strips all styles
# An element that scrolls: the keyboard reaches it, and JupyterLab leaves it the arrow keys.
_SCROLLS = 'tabindex="0" data-lm-suppress-shortcuts="true" role="group"'


def cut(text: str, limit: int) -> str:
    """At most ``limit`` characters of a text, with an ellipsis if it is longer."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def plural(n: int, noun: str) -> str:
    """A number with its noun: ``1 call``, ``2 calls``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def trace_summary(trace: Trace) -> str:
    """One line: outcome, tokens, calls, the teacher's share, and why the trace ended.

    >>> trace_summary(Trace("2*3?", [1], [5, 6, 7, 8], "scct", ["=", "<call>1", "</call>", "6"], [Call(1, 3, 1, 1, 1)],
    ...                     stop="end", correct=True, id="q7"))
    'q7: correct, 4 tokens, 1 call, call ratio 25.0 %, ended by the student'
    """
    name = f"{visible(trace.id)}: " if trace.id else ""
    tokens, stop = plural(len(trace.completion_ids), "token"), STOP_WORDS.get(trace.stop) or visible(trace.stop)
    outcome, ratio = OUTCOME_WORDS[trace.correct], f"{100 * trace.call_ratio:.1f} %"
    return f"{name}{outcome}, {tokens}, {_calls(trace)}, call ratio {ratio}, {stop}"


def trace_text(trace: Trace, *, color: bool | None = None, width: int | None = None) -> str:
    """The completion for a terminal: the teacher bold in «», commands dim, line breaks as ↵; then calls and a summary.

    Args:
        trace: The trace to show.
        color: Write escape codes; by default if the output is a terminal and NO_COLOR is not set.
        width: Characters in a line; by default those of the terminal.

    >>> t = Trace("2*3?", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [Call(1, 2, 1, 1, 1)], stop="end")
    >>> print(trace_text(t, color=False, width=80).splitlines()[0])
    =<call>1</call>«6»
    """
    # Imported here: notebooks use trace_html and should not wait for it.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR") if color is None else color
    console = Console(
        width=width or shutil.get_terminal_size().columns, force_terminal=color, no_color=not color,
        color_system="256" if color else None, legacy_windows=False, force_jupyter=False,
    )  # fmt: skip
    styles = {STUDENT: "", TEACHER: f"bold {ROLES[TEACHER].mark}", COMMAND: "dim"}
    strip = Text(overflow="fold")
    for source, _, start, end in turns(trace):
        role, text = ROLES[source], "".join(trace.pieces[start:end])
        strip.append(role.open + visible(text, "\n\t").replace("\n", "↵\n") + role.close, styles[source])
    with console.capture() as capture:
        console.print(strip)
        if trace.calls:
            columns, rows, notes = _call_table(trace)
            columns = [name for name in columns if name != LEFT_COLUMNS[0]]  # it stands in the text above
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
            for name in columns:
                left = name in LEFT_COLUMNS
                table.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
            for row in rows:
                table.add_row(*(Text(row[name]) for name in columns))
            console.print(table)
            for k, note in notes.items():
                console.print(Text(f"call {k + 1}: {note}"))
            if len(trace.calls) > MAX_ROWS:
                console.print(f"and {len(trace.calls) - MAX_ROWS:,} more calls")
        console.print(Text(trace_summary(trace)))
    return capture.get()


def trace_html(trace: Trace) -> str:
    """A self-contained HTML fragment: question, outcome, every token in the style of its writer, a table of the calls.

    >>> t = Trace("2*3?", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [Call(1, 2, 1, 1, 1)], stop="end")
    >>> '<mark class="rl-t" data-call="1">' in trace_html(t)
    True
    """
    question = _escape(question_text(trace), keep="\n")
    return (
        f'<section class="rl-trace {NO_MATH}" aria-label="Relay trace. {_escape(trace_summary(trace))}">'
        f"<style>{style(ROOT, 'trace.css')}</style>"
        f'<div class="rl-question" dir="auto" {_SCROLLS} aria-label="Question">{question}</div>'
        f"{_facts(trace)}{_legend(trace)}{_strip(trace)}{_calls_html(trace)}</section>"
    )


def question_text(trace: Trace) -> str:
    """The question; of a conversation, its messages, each after its role."""
    question = str(trace.problem.get("question") or trace.prompt)
    messages = [*(trace.history or ()), {"role": "user", "content": question}]
    return "\n".join(f"[{m['role']}] {m['content']}" for m in messages) if trace.history else question


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


def map_paths(trace: Trace) -> dict[str, str]:
    """The whole completion as bars: one SVG path per source, in a box of its tokens x 10."""
    tops = {STUDENT: 4, COMMAND: 2, TEACHER: 0}  # bars differ in height as well as in colour
    paths: dict[str, str] = {}
    for source, _, start, end in turns(trace):
        bar = f"M{start} {tops[source]}h{end - start}V{10 - tops[source]}H{start}z"
        paths[source] = paths.get(source, "") + bar
    return paths


def call_facts(call: Call) -> dict[str, str]:
    """A call in words, by column of the table; the empty ones do not apply. Not escaped."""
    other = f" ({call.written} of its own)" if call.written not in (0, call.delivered) else ""
    result = STATUS_WORDS.get(call.status, call.status)
    if call.status == "answered":
        result = FINISH_WORDS.get(call.finish_reason or "", f"answered, {call.finish_reason}")
    seconds = call.latency
    notes = ["forced, not the student's own"] if call.forced else []
    notes += [cut(call.error, 300)] if call.error else []
    notes += ["approximate: cut from a new turn of a teacher that only chats"] if call.approximate else []
    notes += [f"took back {cut(''.join(call.withdrawn), 300)!r}"] if call.withdrawn else []
    return {
        "requested": "-" if call.requested is None else f"{call.requested:,}",
        "granted": f"{call.granted:,}",
        "delivered": f"{call.delivered:,}{other}",
        "result": result,
        "teacher": " = ".join(filter(None, (call.to, call.teacher))),
        "time": "" if seconds is None else f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms",
        "note": "; ".join(notes),
    }


def _calls(trace: Trace) -> str:
    lost = len(trace.calls) - len(trace.answered)
    return plural(len(trace.calls), "call") + (f" ({lost:,} not answered)" if lost else "")


def _call_table(trace: Trace) -> tuple[list[str], list[dict[str, str]], dict[int, str]]:
    """Columns of the calls that hold anything, rows by column, and notes by row; all safe for a terminal."""
    rows, notes = [], {}
    for k, call in enumerate(trace.calls[:MAX_ROWS]):
        facts = call_facts(call)
        wrote = cut("".join(trace.pieces[call.end : call.end + call.delivered]), 60)
        row = {"call": str(k + 1), "at": f"{call.start:,}"} | {n: facts[n] for n in list(facts)[:3]}
        row |= {LEFT_COLUMNS[0]: wrote} | {name: facts[name] for name in ("result", "teacher", "time")}
        rows.append({name: visible(cell) for name, cell in row.items()})
        if facts["note"]:
            notes[k] = visible(facts["note"])
    return [name for name in rows[0] if any(row[name] for row in rows)], rows, notes


def _escape(text: str, keep: str = "") -> str:
    """HTML of a text: markup escaped, steering characters written out on a dark ground."""
    return HOSTILE.sub(
        lambda m: m[0] if m[0] in keep else f'<i class="rl-x">{ascii(m[0])[1:-1]}</i>', html.escape(text)
    )


def _facts(trace: Trace) -> str:
    kind, sign = {True: ("good", "✓ "), False: ("bad", "✗ "), None: ("muted", "")}[trace.correct]
    answer, n = trace.problem.get("answer"), len(trace.completion_ids)
    outcome = f'<b class="rl-{kind}">{sign}{OUTCOME_WORDS[trace.correct]}</b>'
    facts = [
        outcome + (f" (reference {_escape(str(answer))})" if answer is not None else ""),
        f"<b>{n:,}</b> {plural(n, 'token').split(' ')[1]}",
        "<b>{}</b> {}".format(*_calls(trace).split(" ", 1)),
        f"<b>{100 * trace.call_ratio:.1f} %</b> written by the teacher (call ratio)",
        _escape(STOP_WORDS.get(trace.stop, trace.stop)),
    ]
    run = [f"id {trace.id}" if trace.id else "", f"seed {trace.seed}" if trace.seed is not None else ""]
    run = " · ".join(_escape(part) for part in (*run, f"temperature {trace.temperature:g}") if part)
    items = "".join(f"<li>{fact}</li>" for fact in facts)
    return f'<ul class="rl-facts">{items}<li class="rl-muted">{run}</li></ul>'


def _legend(trace: Trace) -> str:
    """How each writer looks and how much it wrote, and a map of the whole completion."""
    names = {STUDENT: trace.student, TEACHER: trace.teacher, COMMAND: "asks for n tokens"}
    items = ""
    for source, role in ROLES.items():
        sample = _tag(source, "&lt;call&gt;n&lt;/call&gt;" if source == COMMAND else "text")
        name = f": {_escape(names[source])}" if names[source] else ""
        items += f"<li>{sample} {role.name}{name}, <b>{plural(trace.count(source), 'token')}</b></li>"
    paths = (f'<path class="rl-m{s}" fill="{ROLES[s].mark}" d="{d}"/>' for s, d in map_paths(trace).items())
    return (
        f'<ul class="rl-facts rl-muted">{items}</ul><svg class="rl-map" viewBox="0 0 {max(1, len(trace.source))} 10" '
        f'preserveAspectRatio="none" width="100%" height="12" aria-hidden="true">{"".join(paths)}</svg>'
    )


def _tag(source: str, inner: str, classes: str = "", attributes: str = "") -> str:
    return f'<{_TAGS[source]} class="rl-{source}{classes}"{attributes}>{inner}</{_TAGS[source]}>'


def _strip(trace: Trace) -> str:
    body = ""
    for source, k, start, end in turns(trace):
        writer, classes, attributes = ROLES[source].name, "", ""
        if k is not None:
            lost = trace.calls[k].lost
            classes, attributes = " rl-lost" if lost else "", f' data-call="{k + 1}{" ✗" if lost else ""}"'
            writer += f", call {k + 1}{' (not answered)' if lost else ''}"
        tokens = "".join(_token(trace, i, writer) for i in range(start, end))
        body += _tag(source, f'<span class="rl-sr">[{writer}] </span>{tokens}', classes, attributes)
    body = body or '<span class="rl-sr">[empty]</span>'
    label = f"Completion, {plural(len(trace.source), 'token')}"
    return f'<pre class="rl-strip" dir="ltr" {_SCROLLS} aria-label="{label}">{body}</pre>'


def _token(trace: Trace, i: int, writer: str) -> str:
    piece = trace.pieces[i]
    title = f"“{cut(piece, 40)}” · token {i} · id {trace.completion_ids[i]} · {writer}"
    for values, words in (
        (trace.logprobs, "log-prob {:.3f}"),
        (trace.entropies, "entropy {:.3f} nats"),
        (trace.teacher_logprobs, "log-prob under the teacher {:.3f}"),
        (trace.divergences, "divergence of the teacher {:.3f} nats"),
        (trace.teacher_top, "likeliest of the teacher “{:.30}”"),
    ):
        if values and (value := values[i]) is not None:
            title += f" · {words.format(value)}"
    text = _escape(piece, "\n\t").replace("\n", '<i class="rl-n"></i>\n')
    return f'<span title="{html.escape(visible(title))}"{"" if piece else " class=rl-0"}>{text}</span>'


def _calls_html(trace: Trace) -> str:
    if not trace.calls:
        return '<p class="rl-muted">The student makes no call.</p>'
    columns, rows, notes = _call_table(trace)
    align = {name: " class=rl-left" if name in LEFT_COLUMNS else "" for name in columns}
    head, body = "".join(f'<th scope="col"{align[name]}>{name}</th>' for name in columns), ""
    for k, row in enumerate(rows):
        cells = "".join(f"<td{align[name]}>{html.escape(row[name])}</td>" for name in columns)
        body += f"<tr{' class=rl-noted' if k in notes else ''}>{cells}</tr>"
        if k in notes:
            note = html.escape(notes[k])
            body += f'<tr><td></td><td class=rl-left colspan="{len(columns) - 1}">{note}</td></tr>'
    more = f'<p class="rl-muted">and {len(trace.calls) - MAX_ROWS:,} more</p>' if len(trace.calls) > MAX_ROWS else ""
    return (
        f'<div class="rl-scroll rl-calltable" {_SCROLLS} aria-label="Calls"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}"
    )
