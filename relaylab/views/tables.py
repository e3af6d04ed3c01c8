"""Tables of the terminal: traces by suite, an evaluation by method, the embedded models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from relaylab.call_tag import visible
from relaylab.trace import Trace


def trace_table(traces: Iterable[Trace]) -> Table:
    """One row per suite. Excluded answers have no part in the accuracy."""
    means = "problems", "correct", "teacher tokens", "calls", "tokens"
    table, suites = text_table("suite", *means, "failed calls", "excluded"), dict[str, list[Trace]]()
    table.caption = "calls and tokens per response; a failed call was not answered"
    for t in traces:
        suites.setdefault(visible(str(t.problem.get("suite") or "-")), []).append(t)
    for suite, rows in suites.items():
        graded = [t.correct for t in rows if t.correct is not None and t.stop != "excluded"]
        tokens, calls = sum(len(t.source) for t in rows), [c for t in rows for c in t.calls]
        table.add_row(
            Text(suite),
            str(len(rows)),
            _percent(sum(graded), len(graded)),
            _percent(sum(t.source.count("t") for t in rows), tokens),
            f"{len(calls) / len(rows):.2f}",
            f"{tokens / len(rows):.1f}",
            str(sum(c.status == "failed" for c in calls)),
            str(sum(t.stop == "excluded" for t in rows)),
        )
    return table


def method_table(summary: Any) -> Table:
    """One row per method. ``summary``: of ``evaluation.stats.summary``."""
    excluded = ["excluded"] if summary["excluded"].any() else []
    means = "correct", "95\N{NO-BREAK SPACE}% interval", "teacher tokens", "calls", "gap recovered"
    table = text_table("method", *means, *excluded)
    table.caption = "calls per response"
    for row in summary.itertuples():
        cells = [
            f"{100 * row.accuracy:.1f} %",
            f"{100 * row.low:.1f}, {100 * row.high:.1f}",
            f"{100 * row.teacher_share:.2f} %",
            f"{row.calls:.2f}",
            f"{100 * row.gap:.1f} %",
        ]
        numbers = ("-" if "nan" in cell else cell for cell in cells)  # where every answer is excluded, there is none
        table.add_row(Text(visible(row.method)), *numbers, *[str(row.excluded or 0)][: len(excluded)])
    return table


def zoo_table(manifest: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per embedded model, with its scores in the manifest."""
    table = text_table("model", "size", "alone", "relay", "teacher", "h,\N{NO-BREAK SPACE}c")
    table.caption = (
        "right answers to test problems: alone at temperature 1 without calls, the relay greedy; its teacher tokens; "
        "h: harmless share of uncertain tokens, c: confident share of decisive ones (docs/results.md)"
    )
    for name, entry in manifest.items():
        scores, relayed = list(entry.get("scores", {}).values()), list(entry.get("relay_scores", {}).values())
        cells = [_percent(*(sum(s[k] for s in group) for k in ("right", "count"))) for group in (scores, relayed)]
        cells.append(_percent(*(sum(s[k] for s in relayed) for k in ("teacher", "tokens"))))
        dials = [f"{entry['dials'][k]['value']:.2f}" for k in ("harmless", "confident")] if "dials" in entry else ["-"]
        size = f"{entry['parameters'] / 1e6:.2f} M" if "parameters" in entry else "-"
        table.add_row(name, size, *cells, ", ".join(dials))
    return table


def text_table(name: str, *numbers: str) -> Table:
    """A table for a terminal with a column of names and columns of numbers. Where it is narrow, names are folded."""
    table = Table()
    table.add_column(name, overflow="fold")
    for header in numbers:
        table.add_column(header.replace(" ", "\n"), justify="right", no_wrap=True)
    return table


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
