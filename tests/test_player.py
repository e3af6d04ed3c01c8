"""The player shows every token to the right reader, as text whatever it is, and moves by mouse and keys."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_view import HOSTILE, Page, contrast, relay

from relaylab.evaluation.learning import answer_text
from relaylab.trace import Call, Trace
from relaylab.views.player import call_words, player, strip_state
from relaylab.views.theme import DARK, LIGHT, NO_MATH, Html, source
from relaylab.views.trace_view import trace_html
from relaylab.views.widget import STYLE, bundle, static_view

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def teacher_pieces(trace: Trace) -> list[str]:
    """What the teacher sees of each token."""
    text, begins, _ = answer_text(trace)
    return [text[a:b] for a, b in pairwise(begins)]


def evaluate(view: str, expression: str, data: Any) -> Any:
    """The value of a JavaScript expression over ``data``, among what a view and its modules export; run by node."""
    if NODE is None:
        pytest.skip("node is not installed: the JavaScript of the views cannot be run")
    modules = ", ".join(re.findall(r"^const (\$\w+) = ", bundle(view), re.M))
    program = (
        f"{bundle(view)}\nconst all = Object.assign({{}}, {modules});"
        'const data = JSON.parse(require("fs").readFileSync(0, "utf8"));'
        f"const value = new Function(...Object.keys(all), 'data', {json.dumps('return ' + expression)});"
        "console.log(JSON.stringify(value(...Object.values(all), data)));"
    )
    done = subprocess.run([NODE, "-e", program], input=json.dumps(data), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


anything = st.one_of(
    st.sampled_from([*HOSTILE, "<call>", "3", "</call>", "<call>2</call>", "</call>.", "<!--", "</script>"]),
    st.text(st.characters(exclude_categories=()), max_size=6),
)


@given(st.lists(st.tuples(anything, st.sampled_from("stc")), max_size=14))
@settings(max_examples=150, deadline=None)
def test_the_teachers_tokens_are_the_teachers_view(tokens):
    trace = Trace("q", [1], [0] * len(tokens), "".join(s for _, s in tokens), [p for p, _ in tokens])
    assert "".join(teacher_pieces(trace)) == trace.teacher_view


def test_a_command_within_and_across_tokens_leaves_what_is_around_it():
    trace = Trace("q", [1], [1, 2, 3, 4], "sccs", ["a<", "b<call>1<", "/call>c<call>2</call>d", "<call>9"])
    assert teacher_pieces(trace) == ["a<", "b", "cd", "<call>9"]


@given(st.lists(anything, max_size=8), anything)
@settings(max_examples=80, deadline=None)
def test_hostile_text_is_data_and_never_markup(pieces, question):
    trace = Trace(question, [1], [0] * len(pieces), "s" * len(pieces), pieces, id=question)
    text = player(trace).html
    page = Page(text)
    text.encode()  # no lone surrogates
    assert set(page.tags) <= {"section", "style", "script", "div", "details", "summary", "p", "b", "ul", "li"}
    assert (page.tags.count("script"), page.handlers) == (2, [])
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]", text)
    shown = page.data["traces"][0]
    assert all(a == b or k in shown["rewritten"] for k, (a, b) in enumerate(zip(shown["pieces"], pieces, strict=True)))


@pytest.mark.parametrize(
    "name", ["atlas", "cost_dial", "counterfactual_view", "player", "playground", "predict", "reward_lab"]
)
def test_modules_write_text_only_and_fetch_nothing(name, tmp_path):
    module = bundle(name)
    unsafe = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|fetch\(|import[ (]|export "
    assert not re.search(unsafe, module)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|</script|<!--", module)
    assert module.count(f"const ${name} = ") == module.count("const $shared = ") == 1  # names of a module stay within
    if NODE is None:
        pytest.skip("node is not installed: the JavaScript of the views cannot be checked")
    (tmp_path / "view.mjs").write_text(f"{module}\nexport default {{ render: ${name}.render }};")
    done = subprocess.run([NODE, "--check", str(tmp_path / "view.mjs")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_styles_fetch_nothing_and_their_colours_come_from_the_palettes():
    assert not re.search(r"url\(|@import|//", STYLE)
    for name in ("trace.css", "views.css"):  # test_view.py measures the contrasts of the palettes
        names = set(re.findall(r"var\(--rl-([a-z-]+)\)", source(name))) - {"sans", "mono"}
        assert names <= set(LIGHT) & set(DARK)
        assert not re.search(r"#[0-9a-f]{3,6}\b|rgba?\(", source(name))
    for palette in (LIGHT, DARK):  # buttons, disabled ones, characters written out, numbers of calls
        for text, ground in (("ink", "panel"), ("muted", "panel"), ("paper", "muted"), ("paper", "command")):
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)


def test_numbers_that_json_does_not_know_are_unknown():
    trace = Trace("q", [1], [1, 2, 3], "sss", list("abc"))
    trace.logprobs, trace.entropies = [float("-inf"), float("nan"), -0.123456], [None, 0.5, 1.0]
    data = Page(player(trace).html).data["traces"][0]
    assert data["logprobs"] == [None, None, -0.1235]
    with pytest.raises(ValueError, match="JSON compliant"):
        static_view("player", {"x": float("nan")}, label="", words="")


def test_without_scripts_the_words_say_it_all():
    page = player([relay(), Trace("", [])])
    words = Page(page.html).words
    for text in ("[student] 81*44=", "[command, call 1] <call>4</call>", "[teacher, call 1] 3564", "81 boxes of <i>44"):
        assert text in words
    assert "Call 2: asked for no number; granted 0; delivered 0; malformed: not a number; forced" in words
    assert page.text.count("\n") == 1
    assert '<details class="rl-words" open>' in page.html
    assert f'<section class="rl-view {NO_MATH}"' in page.html  # a dollar stays a dollar
    with pytest.raises(ValueError, match="no trace to play"):
        player([])


def test_what_the_script_says_of_tokens_and_calls():
    trace = Page(player(relay()).html).data["traces"][0]
    said = evaluate("player", "data.source.split('').map((_, i) => tokenWords(data, owners(data), i))", trace)
    assert said[5] == "token 6 of 13 · teacher, call 1 · “3” · id 105 · log-prob -0.250"
    assert said[9] == "token 10 of 13 · student · “↵” · id 109 · log-prob -0.250 · entropy 0.500 nats"
    given = relay()
    given.teacher_top, given.divergences = ["\n<b>"] * 13, [None, *[0.25] * 12]
    given.teacher_logprobs = [*[-1.5] * 12, float("-inf")]
    one = Page(player(given).html).data["traces"][0]
    words = evaluate("player", "[0, 9, 12].map((i) => tokenWords(data, owners(data), i))", one)
    assert words[0].endswith(" nats · under the teacher: log-prob -1.500, likeliest “↵<b>”")
    assert words[1].endswith("under the teacher: log-prob -1.500, divergence 0.250 nats, likeliest “↵<b>”")
    assert words[2].endswith("under the teacher: divergence 0.250 nats, likeliest “↵<b>”")
    stops = "[0, 3, 5, 11, 13].map((at) => [callFrom(data, at, true) ?? null, callFrom(data, at, false) ?? null])"
    assert evaluate("player", stops, trace) == [[3, None], [11, None], [11, 3], [None, 3], [None, 11]]
    assert (trace["map"]["t"], trace["map"]["c"]) == ("M5 0h4V10H5z", "M2 2h3V8H2zM10 2h3V8H10z")


# In a browser ---------------------------------------------------------------------------------------------------------


def in_browser(folder: Path, views: Sequence[Html], trial: str) -> dict[str, Any]:
    """What a script puts into ``found`` on a page of some views. Text of a view that ran would change the title."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the views cannot be tried in a browser")
    script = f"const found = {{}};\n{trial}\ndocument.body.textContent = JSON.stringify(found);"
    body = "".join(view.html for view in views)
    page = folder / "page.html"
    page.write_text(f'<!doctype html><meta charset="utf-8"><title>whole</title><body>{body}<script>{script}</script>')
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder}/p"]
    done = subprocess.run([CHROMIUM, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=240)
    assert "<title>whole</title>" in done.stdout, done.stderr[-2000:]
    return json.loads(html.unescape(done.stdout.partition("<body>")[2].rpartition("</body>")[0]))


# A stand-in for a widget's model: `set` changes it as the kernel does, and `sent` holds what the page said.
MODEL = """const listeners = [], sent = [];
const on = (event, act) => listeners.push([event.replace("change:", ""), act]);
const model = { get: (name) => state[name], send: (message) => sent.push(message), on };
const set = (changes) => {
  Object.assign(state, changes);
  for (const [name, act] of listeners) if (name in changes) act();
};
"""


def widget_page(name: str, copies: int = 1, **state: Any) -> Html:
    """The page of a widget without a kernel, drawn so many times, for ``in_browser``."""
    state = {"message": "", "failed": False, "mark": "", "busy": False, "live": {}, "runs": []} | state
    data = json.dumps(state).replace("<", "\\u003c")
    draw = f'for (const el of document.querySelectorAll(".copy")) ${name}.render({{ model, el }});'
    copy = '<div class="copy"></div>'
    script = f"<script>const state = {data};\n{MODEL}{bundle(name)}\n{draw}</script>"
    return Html(f"<style>{STYLE}</style>{copies * copy}{script}", "")


# What the mouse and the keys do in JupyterLab is in test_browser.py.
TRIAL = """
const [small, large] = document.querySelectorAll("[data-rl]");
const [strip, theirs] = small.querySelectorAll(".rl-strip");
const out = (pane) => [...pane.children].filter((s) => getComputedStyle(s).visibility === "visible").length;
const key = (k) => strip.dispatchEvent(new KeyboardEvent("keydown", { key: k, bubbles: true }));
found.text = strip.textContent;
found.theirs = theirs.textContent;
found.elements = strip.querySelectorAll("*").length;
key("Home"); key("c"); found.call = [out(strip), out(theirs)];
let tick = null, clock = 0;
window.setInterval = (act) => ((tick = act), 7);
performance.now = () => clock;
key("Home"); key(" "); clock = 500; tick(); found.played = out(strip);
const slider = large.querySelector(".rl-scrub");
slider.value = 8192; slider.dispatchEvent(new Event("input"));
const page = large.querySelector(".rl-strip").children;
found.page = [page.length, page[0].rlIndex, large.querySelector(".rl-bar").innerText.slice(-26)];
"""


def test_the_player_in_a_browser(tmp_path: Path):
    hostile = "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
    small = relay()
    small.pieces[0] = hostile + "x" * 100_000
    n = 8192
    large = Trace("q", [1], list(range(n)), "ssssssssscccttts" * (n // 16), [" word"] * n)
    found = in_browser(tmp_path, [player(small), player(large)], TRIAL)
    assert found["text"] == small.text.replace("\n", "↵\n")
    assert found["theirs"] == small.teacher_view.replace("\n", "↵\n")
    assert found["elements"] == 13
    assert found["call"] == [3, 2]  # the teacher does not see the command
    assert found["played"] == 8  # half a second of 16 tokens/s
    assert found["page"] == [512, 7680, "okens 7681 to 8192 of 8192"]


LABELS = """
const all = [...document.querySelectorAll(".rl-strip [data-call]")];
found.labels = all.map((e) => [e.className, e.dataset.call]);
found.drawn = all.map((e) => getComputedStyle(e, "::before").content);
"""


def test_a_call_that_is_never_closed_has_its_cross(tmp_path: Path):
    trace = Trace("q", [1], [1, 2, 3], "scs", ["a", "<call>x</call>", "<call>3"])
    trace.calls = [Call(1, 2, None, status="malformed"), Call(2, 3, None, status="unclosed")]
    found = in_browser(tmp_path, [player(trace), Html(trace_html(trace), "")], LABELS)
    crosses = [[look, label] for look, label in found["labels"] if "✗" in label]
    assert [look.removesuffix(" rl-now") for look, _ in crosses] == [
        "rl-c rl-lost", "rl-s rl-lost", "rl-s rl-lost", "rl-c rl-lost", "rl-s rl-lost"
    ]  # fmt: skip
    # The student's view, what the teacher sees of it, and the page without a script.
    assert [label.split()[0] for _, label in crosses] == ["1", "2", "2", "1", "2"]
    assert ["✗" in drawn for drawn in found["drawn"]] == [True] * 5


def test_a_call_that_is_being_answered_is_not_lost():
    statuses = ("waiting", "answered", "refused")
    calls = [Call(k, k + 1, 3, 3, status=status) for k, status in enumerate(statuses)]
    shown = strip_state(Trace("q", [1], [1, 2, 3], "ccc", ["<call>3</call>"] * 3, calls))["calls"]
    assert [call["lost"] for call in shown] == [False, False, True]


def test_a_call_names_the_teacher_that_was_asked():
    calls = [Call(1, 2, 3, status="unknown", to="nobody"), Call(1, 2, 3, 3, 1, teacher="m1", to="large")]
    assert [call_words(c).partition("; teacher ")[2] for c in calls] == ["nobody", "large = m1"]
