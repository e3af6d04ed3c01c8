"""A trace on screen: nothing is lost or leaves its place, and every reader can tell who wrote it."""

import ast
import json
import re
import sys
import unicodedata
from collections.abc import Iterator

import html5lib
import plotly.io as pio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaylab.call_tag import visible
from relaylab.trace import Call, Trace
from relaylab.views.theme import DARK, HEAT, HEAT_SIGNED, LIGHT, ROLES, register_templates
from relaylab.views.trace_view import MAX_ROWS, trace_html, trace_summary, trace_text, turns

HOSTILE = [
    "<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "&lt;&amp;", "\x1b[31m", "\x00", "\r",
    "\u202eevil", "\u2066", "\u200b", "\U000e0041", "\ud800", "[red]", "", "שלום",
]  # fmt: skip


def relay() -> Trace:
    """81*44=<call>4</call>3564, and a command that names no number; the last token merges its `>` with a dot."""
    return Trace(
        prompt="81 boxes of 44?",
        prompt_ids=[1],
        completion_ids=list(range(100, 113)),
        source="sscccttttsccc",
        pieces=["81*44", "=", "<call>", "4", "</call>", "3", "5", "6", "4", "\n", "<call>", "x", "</call>."],
        calls=[
            Call(2, 5, 4, 4, 4, 4, finish_reason="length", teacher="big", latency=0.0123),
            Call(10, 13, None, status="malformed", forced=True, error="<b>no</b>"),
        ],
        logprobs=[-0.25] * 13,
        entropies=[0.5] * 5 + [None] * 4 + [0.5] * 4,
        stop="end",
        problem={"question": "81 boxes of <i>44</i>?", "answer": "3564"},
        correct=True,
    )


TAGS = set(re.findall(r"\w+", "section style div pre ul li b svg path span mark code i table thead tbody tr th td p"))


class Page:
    """A fragment as a strict parser of HTML5 reads it; of a trace also its tokens, with written-out characters read."""

    def __init__(self, text: str):
        root = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parseFragment(text)
        elements = list(root.iter())[1:]
        self.tags = [e.tag.rpartition("}")[2] for e in elements]  # without the namespace of SVG
        self.handlers = [name for e in elements for name in e.attrib if name.startswith("on")]
        self.data = next((json.loads(e.text) for e in elements if e.get("type") == "application/json"), None)
        self.words = "".join(texts(root, lambda e: e.tag in ("script", "style")))
        self.outside = "\n".join(texts(root, lambda e: e.tag == "style" or e.get("class") == "rl-strip"))
        self.prefixes = [e.text for e in elements if e.get("class") == "rl-sr"]
        self.calls = [e.get("data-call") for e in elements if "data-call" in e.attrib]
        for strip in (e for e in elements if e.get("class") == "rl-strip"):
            tokens = [(turn.get("class").split()[0][-1], e) for turn in strip for e in turn]
            self.titles = [(writer, e.get("title")) for writer, e in tokens if "title" in e.attrib]
            for chip in (e for e in strip.iter() if e.get("class") == "rl-x"):
                chip.text = ast.literal_eval(f"'{chip.text}'")
            self.strip = "".join(texts(strip, lambda e: e.get("class") == "rl-sr"))


def texts(element, skip) -> Iterator[str]:
    """The texts within an element, without those within some."""
    if not skip(element):
        yield from [element.text] if element.text else []
        for child in element:
            yield from texts(child, skip)
            yield from [child.tail] if child.tail else []


def test_the_strip_shows_every_token_with_its_writer():
    page = Page(trace_html(relay()))
    assert page.strip == relay().text  # line breaks break the line
    assert trace_html(relay()).count('class="rl-n"') == 1
    assert "".join(writer for writer, _ in page.titles) == relay().source
    assert page.titles[5][1] == "“3” · token 5 · id 105 · teacher, call 1 · log-prob -0.250"
    assert page.titles[9][1] == "“\\n” · token 9 · id 109 · student · log-prob -0.250 · entropy 0.500 nats"
    writers = "student", "command, call 1", "teacher, call 1", "student", "command, call 2 (not answered)"
    assert page.prefixes == [f"[{writer}] " for writer in writers]
    assert page.calls == ["1", "1", "2 ✗"]


def test_the_header_and_the_table_say_what_happened():
    words = Page(trace_html(relay())).outside
    for expected in (
        "81 boxes of <i>44</i>?", "✓ correct", "(reference 3564)", "13\n tokens", "2\n calls (1 not answered)",
        "30.8 %", "ended by the student", "answered in full", "12.3 ms", "malformed: not a number",
        "forced, not the student's own; <b>no</b>",
    ):  # fmt: skip
        assert expected in words
    cells = re.findall(r"<tr><td>.*?</tr>|<tr class=rl-noted>.*?</tr>", trace_html(relay()))
    rows = [re.findall(r">([^<]*)</td>", row)[:6] for row in cells]
    assert rows[:2] == [["1", "2", "4", "4", "4", "3564"], ["2", "10", "-", "0", "0", ""]]


def test_calls_in_a_row_stay_apart():
    t = Trace("q", [1], [1, 2, 3, 4], "ctct", list("<a>b"), [Call(0, 1, 1, 1, 1), Call(2, 3, 1, 1, 1)])
    assert list(turns(t)) == [("c", 0, 0, 1), ("t", 0, 1, 2), ("c", 1, 2, 3), ("t", 1, 3, 4)]
    joined = Trace("q", [1], [1, 2], "tt", ["a", "b"], [Call(0, 0, 1, 1, 1), Call(1, 1, 1, 1, 1)])
    assert list(turns(joined)) == [("t", 0, 0, 1), ("t", 1, 1, 2)]


anything = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=()), max_size=8))


@given(st.lists(st.tuples(anything, st.sampled_from("stc")), max_size=12), anything, anything, anything)
@settings(max_examples=150, deadline=None)
def test_hostile_text_is_shown_and_does_nothing(tokens, question, name, error):
    pieces, source = [p for p, _ in tokens], "".join(s for _, s in tokens)
    n = len(pieces)
    call = Call(0, n // 2, 1, 1, n - n // 2, 7, name or "failed", error, name, error=error)
    t = Trace(question, [1], [0] * n, source, pieces, [call], stop=name, student=name, teacher=error, id=name)
    t.problem = {"question": question, "answer": error}
    html = trace_html(t)
    page = Page(html)
    assert page.strip == t.text
    assert "".join(writer for writer, _ in page.titles) == source
    assert set(page.tags) <= TAGS
    steering = {
        c for c in html if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\u202e\u2066\u200b\U000e0041"
    }
    assert steering <= {"\n", "\t"}
    html.encode()  # no lone surrogates

    terminal = trace_text(t, color=False, width=80)
    assert not {c for c in terminal if unicodedata.category(c) in ("Cc", "Cs")} - {"\n", "\t"}
    assert "\n" not in trace_summary(t)
    assert "\x1b" not in trace_summary(t)


def test_every_formatting_character_but_the_joiners_is_made_visible():
    # Letters' own marks, not steering: Arabic and Indic number signs, and the joiners of hieroglyphs.
    scripts = (
        set(range(0x600, 0x606)) | {0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD} | set(range(0x13430, 0x13440))
    )
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp", "Cs") and code not in scripts | {0x200C, 0x200D}:
            assert visible(chr(code)) != chr(code), hex(code)
    family = "👨\u200d👩\u200d👧 é ✓ – 漢字 नमस्ते\ufe0f"
    assert visible(family) == family


def contrast(a: str, b: str) -> float:
    """WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(color: str) -> float:
        parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_all_text_can_be_read(palette):
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    text = [("ink", "paper"), ("muted", "paper"), ("student", "paper"), ("good", "paper"), ("bad", "paper")]
    text += [("teacher", "teacher-fill"), ("muted", "teacher-fill"), ("command", "command-fill"), ("command", "paper")]
    text += [(name, "panel") for name in ("ink", "muted", "student", "good", "bad")]  # of runs and buttons
    ratios = {pair: contrast(palette[pair[0]], palette[pair[1]]) for pair in text}
    assert min(ratios.values()) >= 4.5, ratios
    shapes = {name: contrast(palette[name], palette["paper"]) for name in ("teacher-edge", "command-edge")}
    shapes |= {role.name: contrast(role.mark, palette["paper"]) for role in ROLES.values()}
    assert min(shapes.values()) >= 3, shapes


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("scale", [HEAT, HEAT_SIGNED])
def test_numbers_in_heat_maps_can_be_read(palette, scale):
    """On each end of a scale, over the page's paper; the template gives them the page's ink."""
    for _, color in scale:
        *rgb, alpha = (float(part) for part in color[5:-1].split(","))
        paper = [int(palette["paper"][i : i + 2], 16) for i in (1, 3, 5)]
        shown = "#" + "".join(f"{round(alpha * a + (1 - alpha) * b):02x}" for a, b in zip(rgb, paper, strict=True))
        assert contrast(palette["ink"], shown) >= 4.5, (color, shown)
    register_templates()
    for name, inks in (("relaylab_light", LIGHT), ("relaylab_dark", DARK)):
        assert pio.templates[name].data.heatmap[0].textfont.color == inks["ink"]


def test_roles_differ_by_more_than_colour_and_nothing_is_fetched():
    assert len({role.symbol for role in ROLES.values()}) == 3
    html = trace_html(relay())
    assert (html.count("<mark"), html.count("<code")) == (2, 3)  # one of each in the legend
    assert re.search(r" \.rl-t\{[^}]*border-bottom:2px solid", html)
    assert re.search(r" \.rl-c\{[^}]*border:1px dashed", html)
    assert not re.search(r"https?:|//|<script|<link|@import|url\(|javascript:|\son\w+=", html)


def test_eight_thousand_tokens_stay_small():
    n = 8192
    calls = [Call(i + 10, i + 13, 3, 3, 3, 3) for i in range(0, n, 16)]
    scores = {"logprobs": [-0.123] * n, "entropies": [0.456] * n}
    html = trace_html(Trace("q", [1], list(range(n)), "sssssssssscccttt" * (n // 16), [" word"] * n, calls, **scores))
    assert len(html.encode()) < 2e6
    assert html.count("<tr") == MAX_ROWS + 1
    assert f"and {len(calls) - MAX_ROWS} more" in html


def test_a_word_without_end_wraps():
    t = Trace("q", [1], [1], "s", ["x" * 100_000])
    html = trace_html(t)
    assert len(html) < 120_000
    assert re.search(r"rl-strip\{[^}]*overflow-wrap:anywhere", html)
    assert max(map(len, trace_text(t, color=False, width=80).splitlines())) <= 80


def test_empty_trace():
    t = Trace("", [])
    assert Page(trace_html(t)).strip == ""
    assert trace_summary(t) == "not graded, 0 tokens, 0 calls, call ratio 0.0 %, reason of the end not recorded"
    assert trace_text(t, color=False, width=80).strip() == trace_summary(t)


def test_terminal_text():
    plain = trace_text(relay(), color=False, width=100)
    assert plain.startswith("81*44=<call>4</call>«3564»↵\n<call>x</call>.\n")
    assert "\x1b" not in plain
    assert re.search(r"1 +2 +4 +4 +4 +answered in full +big +12\.3 ms", plain)
    assert "call 2: forced, not the student's own; <b>no</b>" in plain
    assert plain.endswith("correct, 13 tokens, 2 calls (1 not answered), call ratio 30.8 %, ended by the student\n")

    coloured = trace_text(relay(), color=True, width=100)
    assert re.search(r"\x1b\[1;38;5;\d+m«3564»\x1b\[0m", coloured)
    assert "\x1b[2m<call>4</call>\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_terminal_colour_follows_the_output_and_no_color(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" in trace_text(relay(), width=80)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in trace_text(relay(), width=80)


def test_terminal_does_not_read_markup():
    t = Trace("q", [1], [1, 2], "st", ["[bold]a[/bold] :smile:", "[/red]"], [Call(1, 1, 1, 1, 1, forced=True)])
    t.calls[0].teacher, t.id = "[red]big[/red]", "[i]7[/i]"
    text = trace_text(t, color=False, width=120)
    assert text.startswith("[bold]a[/bold] :smile:«[/red]»\n")
    assert "[red]big[/red]" in text
    assert "[i]7[/i]: not graded" in text
