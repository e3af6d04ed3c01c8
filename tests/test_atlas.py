"""The atlas counts what the traces say, lists the traces of a cell, and opens them."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_player import evaluate, in_browser
from test_view import HOSTILE, Page

from relaylab.trace import Call, Trace, TraceWriter
from relaylab.views.atlas import COLUMNS, CORNERS, OUTCOMES, _cells, _chosen, atlas, read_labelled

TAGS = {"section", "style", "script", "div", "details", "summary", "p", "table", "thead", "tbody", "tr", "th", "td"}
VIEW = {"rows": "group", "align": "position", "shade": "share", "calls": "answered"}
VIEW |= {"group": -1, "suite": -1, "outcome": -1, "least": 0, "most": 10**6}


def some_trace(rng: random.Random, number: int, longest: int = 40) -> Trace:
    """Lines of x, a few calls, answered or not."""
    pieces, writers, calls = [], "", []
    for _ in range(rng.randint(0, longest)):
        draw = rng.random()
        if draw < 0.1:
            start, n = len(pieces), rng.randint(1, 4) if draw < 0.07 else 0
            pieces += ["<call>3</call>", *rng.choices(["7", "\n"], k=n)]
            writers += "c" + "t" * n
            calls.append(Call(start, start + 1, 3, 3 if n else 0, n, n, "answered" if n else "refused"))
        else:
            pieces.append("\n" if draw < 0.25 else "x")
            writers += "s"
    trace = Trace("q", [1], [0] * len(pieces), writers, pieces, calls, id=f"t{number}")
    trace.problem = {"suite": rng.choice(["tiles", "depot"]), "question": f"question {number}"}
    trace.correct = rng.choice([True, False, None])
    return trace


def some_traces(count: int, *, longest: int = 40) -> tuple[list[Trace], list[int]]:
    rng = random.Random(0)
    return [some_trace(rng, k, longest) for k in range(count)], [rng.choice([100, 20, 3]) for _ in range(count)]


def three(first: str = "x") -> list[Trace]:
    """A call that is answered, one that is not, and none."""
    pieces = [first, "<call>1</call>", "7", "\nz"]
    return [
        Trace("q", [1], [1] * 4, "scts", pieces, [Call(1, 2, 1, 1, 1, 1)], correct=True),
        Trace("q", [1], [1] * 4, "sssc", ["x", "\n", "y", "<call>?</call>"], [Call(3, 4, status="zero")]),
        Trace("q", [1], [1] * 8, "s" * 8, ["x"] * 8, correct=False),
    ]


def expected(traces: list[Trace], labels: list[int], view: dict[str, Any]) -> dict[str, Any]:
    """``tally`` of atlas.js, from the traces themselves; cells as (label of the row, column)."""
    suites = list(dict.fromkeys(t.problem["suite"] for t in traces))
    outcomes = [{True: "right", False: "wrong", None: "not graded"}[t.correct] for t in traces]
    found = {name: Counter() for name in ("traces", "right", "graded", "hits", "reach", "calls", "tokens")}
    for trace, label, outcome in zip(traces, labels, outcomes):
        n, suite = len(trace.pieces), trace.problem["suite"]
        wanted = view["group"] in (-1, [3, 20, 100].index(label)) and view["suite"] in (-1, suites.index(suite))
        if not wanted or view["outcome"] not in (-1, OUTCOMES.index(outcome)) or not view["least"] <= n <= view["most"]:
            continue
        row = {"group": str(label), "suite": suite, "outcome": outcome}[view["rows"]]
        found["traces"][row] += 1
        found["right"][row] += outcome == "right"
        found["graded"][row] += outcome != "not graded"
        content = ["" if w == "c" else p for p, w in zip(trace.pieces, trace.source)]
        lines = [sum(p == "\n" for p in content[: c.start]) for c in trace.calls]
        reached = max([len("".join(content).rstrip("\n").split("\n")), *(line + 1 for line in lines)])
        columns = set()
        for call, line in zip(trace.calls, lines):
            if view["calls"] != "all" and (call.status == "answered") != (view["calls"] == "answered"):
                continue
            column = 1 + (min(line, COLUMNS - 1) if view["align"] == "line" else int(call.start / n * COLUMNS + 1e-9))
            columns.add(column)
            found["calls"][row, column] += 1
            found["tokens"][row, column] += call.delivered
        found["hits"].update((row, column) for column in columns or {0})
        reached = min(reached, COLUMNS) if view["align"] == "line" else COLUMNS
        found["reach"].update((row, column) for column in range(reached + 1))
    return {name: dict(+counter) for name, counter in found.items()}


def test_the_counts_are_those_of_the_traces():
    traces, labels = some_traces(150)
    data = Page(atlas(traces, by=labels, name="step").html).data
    assert (data["groups"], data["name"]) == (["3", "20", "100"], "step")
    rng = random.Random(1)
    views = [VIEW | {"align": align, "calls": calls} for align in ("position", "line") for calls in ("lost", "all")]
    for _ in range(40):
        more = {"rows": rng.choice(["group", "suite", "outcome"]), "align": rng.choice(["position", "line"])}
        more |= {"calls": rng.choice(["answered", "lost", "all"]), "group": rng.randint(-1, 2)}
        more |= {"suite": rng.randint(-1, 1), "outcome": rng.randint(-1, 2)}
        views.append(VIEW | more | {"least": rng.randint(0, 20), "most": rng.randint(15, 80)})
    told = "data.views.map((view) => tally(prepared(data.atlas), view))"
    for view, found in zip(views, evaluate("atlas", told, {"atlas": data, "views": views})):
        rows = {"group": data["groups"], "suite": data["suites"], "outcome": data["outcomes"]}[view["rows"]]
        want = expected(traces, labels, view)
        for name in ("traces", "right", "graded"):
            assert dict(zip(rows, found[name])) == {row: want[name].get(row, 0) for row in rows}, (name, view)
        for name in ("hits", "reach", "calls", "tokens"):
            cells = {(rows[i // found["width"]], i % found["width"]): v for i, v in enumerate(found[name]) if v}
            assert cells == want[name], (name, view)


def test_what_a_cell_says_and_lists():
    data = Page(atlas(three(), by=["a", "a", "a"], name="method", full=1).html).data
    view = {"data": data, "position": VIEW, "line": VIEW | {"align": "line", "calls": "all"}}

    def say(which: str, column: int) -> str:
        call = f"tally(prepared(data.data), data.{which}), 0, {column}"
        return evaluate("atlas", f"cellWords(prepared(data.data), data.{which}, {call})", view)

    words = "method a, 25 to 30 % of the answer: 1 of 3 traces (33.3 %), 1 call, 1.0 tokens delivered per call."
    assert say("position", 6) == words
    assert say("position", 0) == "method a, no call: 2 of 3 traces (66.7 %)."
    assert say("line", 2) == "method a, line 2: 1 of 2 traces (50.0 %), 1 call, 0.0 tokens delivered per call."
    lists = "[0, 6, 7].map((k) => listed(prepared(data.data), data.position, 0, k))"
    none, one, empty = evaluate("atlas", lists, view)
    assert [e["t"] for e in none] == [1, 2]
    assert (one, empty) == ([{"t": 0, "call": 0}], [])
    assert evaluate("atlas", "[null, 0, 0.2, 0.6, 99.6, 1999].map(brief)", {}) == ["", "·", "<1", "1", "100", "2k"]
    assert evaluate("atlas", "prepared(data.data).firsts", view) == [0, 1, 2, 2]


def test_what_a_colour_says_is_what_the_legend_says():
    levels = evaluate("atlas", "[0, 0.1, 2.7, 2.8, 11, 12, 45, 69, 70, 100].map((v) => levelOf(v, 100))", {})
    assert levels == [0, 1, 1, 2, 2, 3, 5, 5, 6, 6]
    assert evaluate("atlas", "[1, 2, 3, 4, 5, 6].map((k) => boundOf(k, 100))", {}) == [2.8, 11, 25, 44, 69, 100]
    assert evaluate("atlas", "levelOf(0, 0)", {}) == 0


def test_a_free_filter_needs_every_word():
    traces, labels = some_traces(300)
    data = Page(atlas(traces, by=labels).html).data
    kept = "data.traces.id.filter((_, t) => matcher(data, '{}')(t))"
    found = evaluate("atlas", kept.format("tiles calls>1  tokens<=30 RIGHT"), data)
    right = [t for t in traces if t.correct and t.problem["suite"] == "tiles"]
    assert found == [t.id for t in right if len(t.calls) > 1 and len(t.pieces) <= 30] != []
    assert evaluate("atlas", kept.format("t29"), data) == [t.id for t in traces if "t29" in t.id]
    assert len(evaluate("atlas", kept.format(""), data)) == 300
    assert evaluate("atlas", kept.format("calls>x"), data) == []  # no number: a word like any other
    view = json.dumps(VIEW)
    tallied = f"tally(prepared(data), {{...{view}, matches: matcher(data, 'calls=0')}}).traces"
    assert sum(evaluate("atlas", tallied, data)) == sum(not t.calls for t in traces)
    order = f"listed(prepared(data), {{...{view}, order: 'tokens'}}, 0, 0).map(({{ t }}) => data.traces.tokens[t])"
    sizes = evaluate("atlas", order, Page(atlas(traces, by=labels, full=0).html).data)
    assert sizes == sorted(sizes, reverse=True)


def test_the_colours_of_a_movie_mean_the_same_at_every_step():
    traces, labels = some_traces(300)
    data = Page(atlas(traces, by=labels, name="step", movie=True).html).data
    assert data["movie"]
    views = [VIEW | {"rows": "suite", "shade": "calls", "group": k} for k in range(3)]
    tops = evaluate("atlas", f"{json.dumps(views)}.map((view) => topOf(prepared(data), view))", data)
    for view, top in zip(views, tops):
        assert top == max(expected(traces, labels, view)["calls"].values())


def test_the_rollouts_that_ship_are_a_training(tmp_path):
    folder = Path(__file__).parents[1] / "notebooks" / "measured" / "rollouts"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 300_000
    traces, steps = read_labelled(folder)
    assert sorted(set(steps)) == list(range(0, max(steps) + 1, 16))
    assert all(t.temperature == 1 and t.correct is not None for t in traces)
    assert "Call atlas" in atlas(traces, by=steps, name="training step", movie=True).text


def test_the_traces_in_full_reach_as_many_cells_as_they_can():
    cells = [{"a"}, {"a"}, {"b", "c"}, {"a", "b"}, {"d"}]
    assert set().union(*(cells[t] for t in _chosen(cells, [1] * 5, most=3, tokens=9))) == {"a", "b", "c", "d"}
    assert sorted(_chosen(cells, [3, 3, 9, 3, 3], most=9, tokens=6)) == [3, 4]  # the long one fits no more
    traces, labels = some_traces(600)
    page = Page(atlas(traces, by=labels, full=120).html)
    kept = [int(t) for t in page.data["full"]]
    assert len(kept) == 120
    assert all(page.data["full"][str(t)]["question"] == f"question {t}" for t in kept)
    table, lines = page.data["traces"], iter(page.data["calls"]["line"])
    found = [
        _cells({k: table[k][t] for k in ("group", "suite", "outcome")}, trace, [next(lines) for _ in trace.calls])
        for t, trace in enumerate(traces)
    ]
    assert set().union(*(found[t] for t in kept)) == set().union(*found)
    assert "120 of the 600 traces are in this page in full" in page.data["note"]
    assert page.data["note"].count("every cell has one") == 1
    few = Page(atlas(traces, by=labels, full=4).html).data["note"]
    assert re.search(r"one: \d+ of \d+ cells have one\.", few)
    assert Page(atlas(traces[:9], full=9).html).data["note"] == "All traces can be opened."
    long = [Trace("q", [1], [1] * 60_000, "s" * 60_000, ["x"] * 60_000)] * 4
    assert len(Page(atlas(long).html).data["full"]) == 3  # of 200,000 tokens


def test_hostile_text_is_data_and_never_markup():
    traces = [Trace(text, [1], [1], "s", [text], student=text, id=text, problem={"suite": text}) for text in HOSTILE]
    traces.append(Trace("", [1], [1], "c", ["<call>\ud800</call>"], [Call(0, 1, status="empty", teacher="\ud800")]))
    traces.append(Trace("", [1], [1], "s", ["x" * 100_000], id="x" * 100_000, problem={"suite": "x" * 100_000}))
    for trace in traces:
        trace.entropies, trace.divergences, trace.teacher_top = [0.1], [5.0], [trace.pieces[0]]
    for page in (atlas(traces), atlas(traces, by=[t.id for t in traces], name=HOSTILE[0])):
        page.html.encode()  # no lone surrogates
        found = Page(page.html)
        assert set(found.tags) <= TAGS
        assert (found.tags.count("script"), found.handlers) == (2, [])
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]", page.html)
        assert HOSTILE[0] in found.words
        assert max(map(len, found.data["groups"])) <= 80 * 10  # cut, then what could steer is written out


def test_without_scripts_a_table_says_it():
    answered, lost, none = three()
    view = atlas([answered, none, lost], by=["a", "a", "b"], name="method")
    assert view.text == (
        "Call atlas: 3 traces in 2 rows by method, 1 answered call. Half of the calls begin by 25 % of the answer."
    )
    words = re.sub(r"\n\s*", "", Page(view.html).words)
    assert "methodtracesright (%)with an answered call (%)answered calls per trace" in words
    assert "a250.050.00.5025 to 30 %: 50 % of the traces" in words
    assert "b10.00.00" in words  # nothing is graded: no share of right ones
    view = atlas([answered, none, lost], by=["a", "a", "a"])
    assert "a350.033.3" in re.sub(r"\n\s*", "", Page(view.html).words)  # of two graded ones


def test_rows_by_what_traces_know_of_themselves():
    traces = [Trace("q", [1], student=s, problem={"suite": u, "level": "hard"}) for s, u in (("b", "u"), ("a", "v"))]
    traces.append(Trace("q", [1]))
    groups = {by: Page(atlas(traces, by=by).html).data["groups"] for by in ("suite", "level", "student", "teacher")}
    assert groups["suite"] == ["u", "v", "no suite"]
    assert groups["level"] == ["hard", "no level"]
    assert groups["student"] == ["b", "a", "no name"]
    assert groups["teacher"] == ["no name"]
    for labels, shown in (([None, "a", None], ["no label", "a"]), ([2, math.nan, 1], ["1.0", "2.0", "no label"])):
        data = Page(atlas(traces, by=labels).html).data
        assert (data["groups"], min(data["traces"]["group"])) == (shown, 0)


def test_what_is_wrong_is_named():
    traces = [Trace("q", [1])] * 3
    for said, call in {
        "no trace to draw": lambda: atlas([]),
        "there are suite, level, student, teacher": lambda: atlas(traces, by="method"),
        "2 labels for 3 traces": lambda: atlas(traces, by=[1, 2]),
        "full is -1": lambda: atlas(traces, full=-1),
        "101 rows by step are more than 100": lambda: atlas(traces * 34, by=[*range(101), 0], name="step"),
        "20,001 traces are more than the 20,000": lambda: atlas(traces * 6667),
        "groups other than suites": lambda: atlas(traces, movie=True),
        "every is 0": lambda: read_labelled("x", every=0),
    }.items():
        with pytest.raises(ValueError, match=said):
            call()


def test_the_files_of_a_folder(tmp_path: Path):
    def write(name: str, *ids: str) -> None:
        with TraceWriter(tmp_path / name) as out:
            for text in ids:
                out.write(Trace("q", [1], id=text))

    with pytest.raises(ValueError, match="holds no file of traces"):
        read_labelled(tmp_path)
    write("000100.jsonl", "e")
    write("000020.jsonl", "a", "b", "c")
    write("000020-1.jsonl", "d")
    traces, labels = read_labelled(tmp_path)
    assert sorted(zip(labels, (t.id for t in traces))) == [(20, "a"), (20, "b"), (20, "c"), (20, "d"), (100, "e")]
    traces, labels = read_labelled(tmp_path, every=2)
    assert sorted(t.id for t in traces) == ["a", "c", "d", "e"]
    write("relay student=a.jsonl", "f")
    assert set(read_labelled(tmp_path)[1]) == {"000020", "000020-1", "000100", "relay student=a"}


# The map of scores ----------------------------------------------------------------------------------------------------


def recorded(trace: Trace, seed: int = 0) -> Trace:
    """With made-up entropies, divergences and likeliest tokens of the teacher."""
    rng = random.Random(seed)
    known = [s != "c" for s in trace.source]
    values = [[rng.random() ** 2 * 3 if k else None for k in known] for _ in range(2)]
    return replace(trace, entropies=values[0], divergences=values[1], teacher_top=["7" if k else None for k in known])


def test_the_map_of_scores_holds_the_students_tokens():
    traces = [recorded(trace, k) for k, trace in enumerate(some_traces(40)[0])]
    points = [
        (t, i, trace.entropies[i], trace.divergences[i])
        for t, trace in enumerate(traces)
        for i, source in enumerate(trace.source)
        if source == "s"
    ]
    page = Page(atlas(traces).html)
    scores = page.data["scores"]
    assert [*zip(scores["trace"], scores["at"])] == [p[:2] for p in points]
    assert scores["entropy"] == pytest.approx([p[2] for p in points], abs=1e-4)
    assert scores["divergence"] == pytest.approx([p[3] for p in points], abs=1e-4)
    assert (scores["every"], scores["total"], set(scores["top"])) == (1, len(points), {"7"})
    expected = [[0, 0], [0, 0]]
    for *_, entropy, divergence in points:
        expected[entropy > 0.6][divergence > 0.6] += 1
    assert evaluate("atlas", "corners(data, () => true)", scores) == expected
    wrong = sum(traces[p[0]].correct is False for p in points)
    kept = "corners(data.scores, (t) => data.traces.outcome[t] === 1).flat().reduce((a, b) => a + b)"
    assert evaluate("atlas", kept, page.data) == wrong
    shares = [100 * n / len(points) for row in expected for n in row]
    for words, n, share in zip(CORNERS.values(), [n for row in expected for n in row], shares):
        assert f"{words}{n}{share:.1f}" in re.sub(r"\n\s*", "", page.words)
    sure = max((p for p in points if p[2] <= 0.6), key=lambda p: p[3])
    assert f"token {sure[1] + 1} of t{sure[0]}: entropy {sure[2]:.3f}, divergence {sure[3]:.3f} nats" in page.words

    assert evaluate("atlas", "[places(data).right, places(data).up]", scores) == pytest.approx(
        [max(scores["entropy"]), max(scores["divergence"])]
    )
    k = scores["divergence"].index(max(scores["divergence"]))
    at = evaluate("atlas", "places(data).at", scores)
    assert at[k][1] == min(y for _, y in at)
    x, y = at[k]
    expression = (
        f"[nearest(data, () => true, {x + 1}, {y}), nearest(data, (i) => i !== {k}, {x}, {y}), "
        "nearest(data, () => true, -99, -99)]"
    )
    nearest = evaluate("atlas", expression, at)
    assert at[nearest[0]] == at[k]
    assert (nearest[1] != k, nearest[2]) == (True, -1)


def test_what_a_point_of_the_map_says():
    trace = Trace(
        "q", [1], [1, 2], "ss", ["x", "\n"], entropies=[0.1, 2.0], divergences=[3.0, -1e-7], teacher_top=["y", ""]
    )
    scores = Page(atlas([trace]).html).data["scores"]
    assert [evaluate("atlas", f"pointWords(data, 'trace 1', {i})", scores) for i in (0, 1)] == [
        "“x”, token 1 of trace 1: entropy 0.100, divergence 3.000 nats; the teacher's likeliest is “y”; "
        "sure, the teacher disagrees.",
        "“↵”, token 2 of trace 1: entropy 2.000, divergence 0.000 nats; unsure, the teacher agrees.",
    ]
    assert Page(atlas(three()).html).data["scores"] is None
    bare = replace(trace, teacher_top=None, divergences=[float("nan"), 1.0])
    assert Page(atlas([bare]).html).data["scores"]["top"] == [""], "what is not finite is left out"
    many = Page(atlas([recorded(Trace("q", [1], [1] * 5000, "s" * 5000, ["x"] * 5000))] * 2).html).data["scores"]
    assert (many["total"], many["every"], len(many["trace"])) == (10_000, 3, 3334)


# In a browser ---------------------------------------------------------------------------------------------------------

TRIAL = """
const [root, big] = document.querySelectorAll("[data-rl]");
const lines = (view) => [...view.querySelectorAll(".rl-atlas [role=row]")].slice(1);
const cells = (view) => lines(view).map((row) => [...row.children].map((c) => c.textContent));
const cell = (view, row, column) => lines(view)[row].children[3 + column];
const set = (control, value, name) => ((control.value = value), control.dispatchEvent(new Event(name)));
const [rows, align, shade, calls, method, suite, outcome] = root.querySelectorAll("select");
const items = () => [...root.querySelectorAll(".rl-atlas-list li")].map((li) => li.textContent);
found.start = cells(root);
cell(root, 0, 0).click(); found.none = items();
cell(root, 0, 6).click(); found.listed = items();
root.querySelector(".rl-atlas-list button").click();
const strip = root.querySelector(".rl-strip"), visible = (s) => getComputedStyle(s).visibility === "visible";
found.played = [...strip.children].filter(visible).map((s) => s.textContent).join("");
set(outcome, "1", "change"); found.wrong = cells(root).map((row) => row.slice(0, 4)); found.after = items();
set(calls, "all", "change"); set(align, "line", "change"); found.line = cells(root);
root.querySelector("button[aria-label='Show all traces']").click(); set(rows, "outcome", "change");
found.outcomes = cells(root);
set(root.querySelectorAll("input[type=number]")[0], "5", "input"); found.long = cells(root).map((row) => row[1]);
cell(big, 0, 0).click(); found.most = big.querySelectorAll(".rl-atlas-list li").length;
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const light = (color) => {
  canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255);
  const [r, g, b] = parts.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
found.contrast = {};
for (const theme of ["light", "dark"]) {
  document.documentElement.setAttribute("theme", theme);
  for (const level of [0, 1, 2, 3, 4, 5, 6]) {
    const one = cell(root, 0, 1);
    one.className = "rl-a" + level;
    const { color, backgroundColor } = getComputedStyle(one);
    const [low, high] = [light(color), light(backgroundColor)].sort((a, b) => a - b);
    found.contrast[theme + level] = (high + 0.05) / (low + 0.05);
  }
}
"""


def test_the_atlas_in_a_browser(tmp_path: Path):
    hostile = "<script>document.title='broken'</script>"
    small = three(hostile)
    for k, trace in enumerate(small):
        trace.id, trace.correct = f"{hostile}{k}", k == 0
    views = [atlas(small, by=["a", "a", hostile], name="method"), atlas([Trace("q", [1])] * 99)]
    found = in_browser(tmp_path, views, TRIAL)
    first, second = found["start"]
    assert first == ["a", "2", "50", "50", *["·"] * 5, "50", *["·"] * 14]
    assert second == [hostile, "1", "0", "100", *["·"] * 20]
    assert found["none"] == [f"{hostile}1method a · no suite · ✗ wrong · 4 tokens · 1 call"]
    assert found["listed"] == [f"{hostile}0method a · no suite · ✓ right · 4 tokens · 1 call"]
    assert found["played"] == f"{hostile}<call>1</call>7"  # up to where the call of that cell is answered
    assert found["wrong"] == [["a", "1", "0", "100"], [hostile, "1", "0", "100"]]
    assert found["after"] == []  # the right one is filtered out of the open cell
    assert found["line"] == [["a", "1", "0", "·", "·", "100"], [hostile, "1", "0", "100", "·", ""]]
    assert found["outcomes"] == [
        ["right", "1", "100", "·", "100", "·"],
        ["wrong", "2", "0", "50", "·", "100"],
        ["not graded", "0", "–", "", "", ""],
    ]
    assert found["long"] == ["0", "1", "0"]
    assert found["most"] == 40
    assert min(found["contrast"].values()) >= 4.5, found["contrast"]


POINTS = """
const [root] = document.querySelectorAll("[data-rl]");
const map = root.querySelector(".rl-scores");
const key = (k) => map.dispatchEvent(new KeyboardEvent("keydown", { key: k, bubbles: true, cancelable: true }));
const said = () => map.nextElementSibling.textContent;
found.label = map.getAttribute("aria-label");
found.start = said();
key("ArrowRight"); found.first = said();
key("ArrowRight"); found.second = said();
key("End"); found.last = said();
key("Home"); key("Enter");
const strip = root.querySelector(".rl-strip"), visible = (s) => getComputedStyle(s).visibility === "visible";
found.opened = [...strip.children].filter(visible).map((s) => s.textContent).join("");
found.token = root.querySelector(".rl-token").textContent;
const outcome = [...root.querySelectorAll("select")].find((s) => [...s.options].some((o) => o.text === "wrong"));
outcome.value = "1"; outcome.dispatchEvent(new Event("change"));
found.wrong = map.getAttribute("aria-label").slice(0, 8);
"""


def test_the_map_of_scores_in_a_browser(tmp_path: Path):
    hostile = "<script>document.title='broken'</script>"
    fields = {"entropies": [0.1, 0.2, 2.0], "divergences": [0.1, 3.0, 1.0], "teacher_top": ["a", hostile, "c"]}
    pieces = ["x", hostile, "z"]
    traces = [Trace("q", [1], [1] * 3, "sss", pieces, id=hostile, correct=True, **fields)]
    traces.append(Trace("q", [1], [1], "s", ["w"], correct=False, entropies=[0.0], divergences=[0.0]))
    found = in_browser(tmp_path, [atlas(traces)], POINTS)
    assert found["label"].startswith(
        "4 tokens by entropy and divergence. sure, the teacher agrees: 2 (50.0 %); sure, the"
    )
    assert found["start"].startswith("Point at a token")
    assert f"token 2 of {hostile}: entropy 0.200, divergence 3.000 nats" in found["first"]
    assert found["first"].endswith("sure, the teacher disagrees.")
    assert "token 3 of" in found["second"]
    assert "“w”, token 1 of trace 2: entropy 0.000" in found["last"]
    assert found["opened"] == "x" + hostile
    assert found["token"].endswith(
        "under the teacher: divergence 3.000 nats, likeliest “<script>document.title='broke…”"
    )
    assert found["wrong"] == "1 token "


FILM = """
const filter = document.querySelector("fieldset:last-of-type select");
filter.value = "3"; filter.dispatchEvent(new Event("change"));
const scrub = document.querySelector(".rl-scrub");
found.where = [document.querySelector("output").textContent, scrub.value, scrub.getAttribute("aria-valuetext")];
found.shown = filter.closest("fieldset").querySelector("span.rl-muted").textContent;
"""


def test_the_movie_follows_its_filter(tmp_path: Path):
    traces = [trace for trace in three() for _ in range(2)]
    found = in_browser(tmp_path, [atlas(traces, by=[0, 16, 32, 48, 64, 80], name="step", movie=True)], FILM)
    assert found["where"] == ["step 48", "3", "step 48"]
    assert found["shown"] == "1 of 6 traces"
