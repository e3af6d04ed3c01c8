"""Figures hold the numbers of the traces, exactly, and say them in words too."""

import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from relaylab.trace import Call, Trace
from relaylab.views import figures
from relaylab.views.theme import NO_MATH, ROLES, html_page, html_table, show_figure, with_alt_text
from relaylab.views.trace_view import trace_summary


def trace(name: str, source: str, calls: list[Call], **more) -> Trace:
    return Trace("q", [1], list(range(len(source))), source, list(source), calls, id=name, **more)


def three() -> list[Trace]:
    return [
        trace("none", "s" * 8, []),
        trace("late", "sssssscctts" + "s" * 9, [Call(6, 8, 9, 5, 2, 2)]),
        trace("early", "sscctscccs", [Call(2, 4, 1, 1, 1, 1), Call(6, 9, None, status="empty")], correct=True),
    ]


def drawn(fig) -> dict[str, list[tuple]]:
    """Bars by name: (row, first token, length)."""
    return {b.name: list(zip(b.y, b.base, b.x, strict=True)) for b in fig.data if b.type == "bar"}


def test_call_positions_are_those_of_the_traces_earliest_first():
    fig = figures.call_positions(three())
    assert drawn(fig) == {
        "student tokens": [(0, 0, 10), (1, 0, 20), (2, 0, 8)],
        "teacher tokens": [(0, 4, 1), (1, 8, 2)],
        "command": [(0, 2, 2), (1, 6, 2)],
        "command nobody answered": [(0, 6, 3)],
    }
    marks = {m.name: m for m in fig.data if m.type == "scatter"}
    places = {name: [(round(y + 0.42), x) for x, y in zip(m.x, m.y, strict=True)] for name, m in marks.items()}
    assert places == {"command": [(0, 2), (1, 6)], "command nobody answered": [(0, 6)]}
    assert [fig.layout.yaxis.ticktext[i] for i in range(3)] == ["✓ early", "late", "none"]
    assert "(tokens)" in fig.layout.xaxis.title.text
    assert [m.marker.symbol for m in marks.values()] == [ROLES["c"].symbol, "x"]
    assert fig.layout.meta["alt"] == (
        "Where 3 traces call the teacher: 2 of them call, 3 calls in all; half of the first calls come by token 2; "
        "the teacher wrote 7.9 % of all tokens."
    )
    bars = {b.name: b.customdata[:, 0] for b in fig.data if b.type == "bar"}
    late, early = "<b>call 1</b> of late, at token 6", "<b>call 2</b> of early, at token 6"
    assert bars["teacher tokens"][1] == f"{late}<br>requested 9, granted 5, delivered 2<br>wrote “tt”"
    assert bars["command nobody answered"][0] == f"{early}<br>requested no number, granted 0, delivered 0<br>empty"


def test_relative_positions_are_per_cent_of_each_completion():
    bars = drawn(figures.call_positions(three(), relative=True))
    assert bars["command"] == [(0, pytest.approx(20), pytest.approx(20)), (1, pytest.approx(30), pytest.approx(10))]
    assert [length for _, _, length in bars["student tokens"]] == pytest.approx([100, 100, 100])
    # By tokens "x" calls later than "y", by its share of the completion earlier.
    x, y = trace("x", "s" * 6 + "ct" + "s" * 92, [Call(6, 7, 1, 1, 1)]), trace("y", "sssct", [Call(3, 4, 1, 1, 1)])
    assert figures.call_positions([x, y]).layout.yaxis.ticktext[0] == "y"
    assert figures.call_positions([x, y], relative=True).layout.yaxis.ticktext[0] == "x"


def test_many_traces_become_shares():
    # 402 rows of four tokens: half write s t s s, the others nothing of the teacher and only two tokens.
    called = [trace(f"a{i}", "sts" + "s", [Call(1, 1, 1, 1, 1, forced=True)]) for i in range(201)]
    fig = figures.call_positions([trace(f"b{i}", "ss", []) for i in range(201)] + called)
    (heat,) = fig.data
    z, starts = np.array(heat.z), np.array(heat.customdata)
    assert z.shape == (320, 4)
    assert z[0].tolist() == [0, 100, 0, 0]
    assert z[-1, :2].tolist() == [0, 0]
    assert np.isnan(z[-1, 2:]).all()
    assert starts.sum() == starts[:, 1].sum() == 201
    assert list(heat.x) == [0.5, 1.5, 2.5, 3.5]

    relative = np.array(figures.call_positions(called * 2, relative=True).data[0].z)
    assert relative.shape == (320, 100)
    assert np.flatnonzero(relative[0] == 100).tolist() == [25]


def test_rows_get_thinner_with_their_number():
    one = three()[1]
    few, more, many = (figures.call_positions([one] * n).layout for n in (1, 10, 200))
    assert few.height < more.height < many.height < 900
    assert (few.height < 250, many.yaxis.showticklabels) == (True, False)
    assert len(figures.call_positions([one] * 5000).to_json()) < 3e6


def test_one_trace_alone_and_none():
    assert drawn(figures.call_positions(three()[1])) == drawn(figures.call_positions(three()[1:2]))
    assert "the teacher wrote 0.0 %" in figures.call_positions(Trace("q", [1])).layout.meta["alt"]
    with pytest.raises(ValueError, match="no trace"):
        figures.call_positions([])


def test_hostile_text_stays_text():
    bad = "</script><a href='x'>$x$\x1b\u202e"
    t = trace(bad, "sct", [Call(1, 2, 1, 1, 1, error=bad)], entropies=[0.1, 0.2, None])
    t.pieces[2] = bad
    for fig in (figures.call_positions(t), figures.token_entropy(t)):
        texts = [text for d in fig.data if d.hovertext is not None for text in d.hovertext]
        texts += [text for d in fig.data if d.customdata is not None for text in d.customdata[:, 0]]
        texts += fig.layout.yaxis.ticktext or fig.layout.xaxis.ticktext
        joined = "".join(texts).replace("<br>", "").replace("<b>", "").replace("</b>", "")
        assert not set("<$\x1b\u202e") & set(joined)
        assert "\\x1b" in joined
        assert show_figure(fig).html.count("</script>") == 2
    assert trace_summary(t).startswith("</script>")  # a line of text is no page: only steering characters are changed


def test_token_entropy_holds_the_recorded_values():
    t = trace("e", "sscctts", [Call(2, 4, 2, 2, 2, 2)], entropies=[0.5, 0.25, 2.0, 0.25, None, None, 1.0])
    fig = figures.token_entropy(t)
    line, bars, begins = fig.data
    assert (list(bars.x), list(bars.width)) == ([5], [2])  # tokens 4 and 5 cover 4 to 6
    assert list(line.x) == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5]
    np.testing.assert_equal(list(line.y), [0.5, 0.25, 2.0, 0.25, np.nan, np.nan, 1.0])
    assert (list(begins.x), list(begins.y)) == ([2.5], [2.0])
    assert begins.marker.symbol == ROLES["c"].symbol
    assert "nats" in fig.layout.yaxis.title.text
    assert fig.layout.meta["alt"] == (
        "Entropy of the student along 7 tokens: mean 0.80 nats, highest 2.00 at token 2; "
        "where commands begin, mean 2.00 nats."
    )
    for nothing in (None, [None] * 7):
        t.entropies = nothing
        with pytest.raises(ValueError, match="no entropies"):
            figures.token_entropy(t)


def test_templates_and_the_figure_in_words():
    assert pio.templates["relaylab"].layout.paper_bgcolor == "rgba(0,0,0,0)"
    fig = figures.call_positions(three())
    bundle = show_figure(fig)._repr_mimebundle_()
    assert bundle["text/plain"] == fig.layout.meta["alt"]
    assert f'aria-label="{fig.layout.meta["alt"]}"' in bundle["text/html"]
    assert "<script src" not in bundle["text/html"]
    assert f'<figure class="rl-fig {NO_MATH}"' in bundle["text/html"]  # a dollar stays a dollar
    assert len(bundle["text/html"]) < 40_000  # the library is elsewhere
    fig.layout.meta = None
    with pytest.raises(ValueError, match="text alternative"):
        show_figure(fig)
    assert "<title>A &lt;page&gt;</title>" in html_page("A <page>", "<p>x</p>")


def test_a_call_that_nobody_answered_is_a_call():
    refused = trace("r", "scc", [Call(1, 3, 9, 0, status="refused")], entropies=[0.5, None, None])
    alt = figures.call_positions(refused).layout.meta["alt"]
    assert alt == (
        "Where 1 trace calls the teacher: 1 of them calls, 1 call in all; half of the first calls come by token 1; "
        "the teacher wrote 0.0 % of all tokens."
    )
    later = [trace("n", "s", []), trace("l", "ssc", [Call(2, 3, 1, 1, 0)]), refused]
    assert [name[:1] for name in figures.call_positions(later).layout.yaxis.ticktext] == ["r", "l", "n"]
    # No entropy is known where the call begins: that is no trace without calls.
    assert figures.token_entropy(refused).layout.meta["alt"].endswith("highest 0.50 at token 0.")
    refused.calls = []
    assert figures.token_entropy(refused).layout.meta["alt"].endswith("at token 0; it makes no call.")


def test_the_table_of_a_figure_has_its_texts_and_numbers():
    bars = go.Bar(x=[figures.figure_text("R&D $5 <b>"), "<i>b</i>"], y=np.array([12345, 7]), name="n")
    page = show_figure(with_alt_text(go.Figure(bars), "Bars.", "Bars")).html
    assert "<td>R&amp;D $5 &lt;b&gt;: 12345;  b : 7</td>" in page
    table = html_table(pd.DataFrame({"tokens": [1234.5, 12.345, 0.00123456], "n": [12345, 1, 2]}))
    assert re.findall("<td>(.*?)</td>", table) == ["1234.5", "12345", "12.35", "1", "0.001235", "2"]
