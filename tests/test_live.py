"""The live views decode what was asked, stop when told, fork from the very prefix, and leave a record of it all."""

from __future__ import annotations

import json
import math
import re
import time

import nbformat
import pytest
from nbconvert import HTMLExporter
from test_player import in_browser, widget_page

from relaylab.relay.pair import load_pair
from relaylab.relay.teachers import ScriptedTeacher
from relaylab.sweep.notebook import RESULT, execute
from relaylab.tasks.suites import problem
from relaylab.trace import COMMAND, Call, Trace
from relaylab.views import live_view
from relaylab.views.counterfactual_view import CounterfactualView
from relaylab.views.player import player, player_state
from relaylab.views.playground import Playground
from relaylab.views.theme import NO_MATH

VIEW = "application/vnd.jupyter.widget-view+json"
HOSTILE = "</pre><script>alert(1)</script>\x1b[31m\u202e"
TILES, TASK = problem("tiles", 0), problem("measures", 5)
FREE = "What is 2+2?"


@pytest.fixture(scope="module")
def pair():
    return load_pair("relay")


@pytest.fixture(scope="module")
def original(pair):
    """Two calls: the student's command for 10 tokens begins at token 21, for 6 at token 52. Both end with a line."""
    trace = pair.solve(TASK)
    assert [(c.start, c.end, c.requested) for c in trace.calls] == [(21, 28, 10), (52, 58, 6)]
    return trace


@pytest.fixture
def playground(pair):
    return Playground(students=[pair.student], teachers=[pair.teacher, "none"], suites=["savings", "tiles", "measures"])


def send(view, do, **more):
    """A message as the page sends it."""
    view._handle_custom_msg({"do": do, **more}, [])


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


# The playground -------------------------------------------------------------------------------------------------------


def test_the_playground_writes_what_the_pair_would_and_grades_it(playground, original, monkeypatch):
    assert playground.picked["question"] == TILES.question  # the first hard suite
    sent = []
    monkeypatch.setattr(playground, "_send", lambda message, buffers=None: sent.append(message["state"]))
    assert playground.ask(playground.pick("measures", 5).question).wait(60)
    assert sent[-1].keys() >= {"busy", "message", "runs", "live"}  # its end reaches the page as one message
    (trace,) = playground.traces
    assert (trace.completion_ids, trace.source) == (original.completion_ids, original.source)
    assert trace.logprobs == pytest.approx(original.logprobs, abs=1e-4)
    assert (trace.correct, trace.problem["id"]) == (True, TASK.id)
    (shown,) = playground.runs
    assert (shown["heading"], shown["outcome"]) == ("Run 1: relay with teacher", "right")
    assert shown["how"] == "at most 256 tokens, greedy"
    assert "".join(shown["pieces"]) == original.text
    assert (playground.live, playground.busy, playground.failed) == ({}, False, False)
    summary = "96 tokens, 2 calls, call ratio 8.3 %, ended by the student"
    assert (shown["summary"], playground.message) == (summary, f"Run 1: relay with teacher. Correct, {summary}.")


def test_a_message_of_the_page_is_the_same_call(playground, pair):
    send(playground, "pick", suite="savings")
    send(playground, "pick", suite="savings")
    assert playground.picked["question"] == problem("savings", 1).question
    settings = dict(max_tokens=30, max_calls=0, max_call_tokens=None, temperature=0.7, seed=3, pace=0)
    send(playground, "ask", question=f" {FREE}\n", student="relay", teacher="teacher", **settings)
    assert playground.wait(60)
    send(playground, "ask", question=FREE, teacher="none", max_tokens=5)
    assert playground.wait(60)
    first, second = playground.traces
    expected = pair.solve(FREE, max_tokens=30, max_calls=0, temperature=0.7, seed=3)
    assert (first.completion_ids, first.seed) == (expected.completion_ids, 3)
    assert (first.correct, first.prompt) == (None, FREE)
    how = "at most 30 tokens, 0 calls, temperature 0.7, seed 3. this question is of no"
    assert playground.runs[0]["how"].startswith(how)
    assert (len(second.source), second.teacher) == (5, "none")
    assert playground.runs[1]["heading"] == "Run 2: relay with no teacher"


GRADING = """
const [field, words] = [document.querySelector("textarea"), document.querySelector("fieldset .rl-muted")];
const type = (text) => ((field.value = text), field.dispatchEvent(new Event("input")), words.textContent);
found.words = [...state.picks.map((one) => type(` ${one.question}\n`)), type("constructor")];
"""


def test_the_form_says_of_each_question_whether_it_is_graded(playground, tmp_path):
    playground.pick("savings", 3)
    state = {name: getattr(playground, name) for name in ("setup", "picked", "picks")}
    words = in_browser(tmp_path, [widget_page("playground", **state)], GRADING)["words"]
    answers = TILES.answer, problem("savings", 3).answer
    assert words == [
        f"tiles, number 0: will be graded against {answers[0]}",
        f"savings, number 3: will be graded against {answers[1]}",
        "your own question: not graded",
    ]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"do": "_start"}, "no action '_start'; there are stop, remove"),
        ({}, "no action None"),
        ({"do": "ask", "question": "  "}, "there is no question; type one"),
        ({"do": "ask", "question": "q", "student": "../secret"}, "no student '../secret' here; there are relay"),
        ({"do": "ask", "question": "q", "teacher": "http://x"}, "no teacher 'http://x' here; there are teacher, none"),
        ({"do": "ask", "question": "q", "max_tokens": 0}, "max_tokens is 0"),
        ({"do": "ask", "question": "q", "max_tokens": None}, "max_tokens is None; it must be a whole number"),
        ({"do": "ask", "question": "q", "max_calls": 1.5}, "max_calls is 1.5; it must be a whole number"),
        ({"do": "ask", "question": "q", "temperature": -1}, "temperature is -1; it must be a number"),
        ({"do": "ask", "question": "q", "policy": "x"}, "unknown settings policy"),
        ({"do": "ask"}, "missing 1 required positional argument: 'question'"),
        ({"do": "pick", "suite": "algebra"}, "no suite 'algebra' here; there are savings, tiles"),
        ({"do": "pick", "suite": "tiles", "index": -1}, "index is -1"),
        ({"do": "remove", "key": "run-9"}, "no run 'run-9'"),
    ],
)
def test_what_is_wrong_with_a_message_is_said_and_nothing_runs(playground, message, said):
    playground._handle_custom_msg(message, [])
    assert said in playground.message
    assert (playground.failed, playground.busy, playground.traces) == (True, False, [])


def test_stop_ends_the_answer_and_keeps_it_ungraded(playground, original):
    playground.ask(TASK, pace=50)
    until(lambda: len(playground.live.get("source", "")) >= 3)
    assert playground.busy
    assert playground.runs == []
    send(playground, "stop")
    assert playground.wait(60)
    (trace,) = playground.traces
    assert (trace.stop, trace.correct) == ("interrupted", None)
    assert 3 <= len(trace.source) < 92
    assert trace.completion_ids == original.completion_ids[: len(trace.source)]
    assert not playground.busy
    assert "interrupted" in playground.message
    assert not playground._students["relay"].slots  # its caches were given back
    assert playground.ask(TASK).wait(60)
    assert playground.traces[1].completion_ids == original.completion_ids


def test_it_grows_in_steps_and_not_a_message_a_token(playground):
    grown = []
    playground.observe(lambda change: grown.append(len(change.new.get("source", ""))), "live")
    began = time.monotonic()
    assert playground.ask(TASK, pace=100).wait(60)
    assert 3 <= len(grown) <= (time.monotonic() - began) / live_view.INTERVAL + 2
    assert grown[:-1] == sorted(grown[:-1])
    assert grown[-1] == 0  # nothing is being written any more


def test_one_answer_at_a_time_in_all_views(playground, original, pair):
    what_if = CounterfactualView(original, pair)
    playground.ask(TASK, pace=20)
    with pytest.raises(RuntimeError, match="another answer is being written"):
        what_if.fork(at=10, call=3)
    send(playground, "ask", question="q")
    assert playground.failed
    playground.stop()
    assert playground.wait(60)
    assert what_if.fork(at=10, call=3).wait(60)
    assert [len(view.traces) for view in (playground, what_if)] == [1, 2]


def test_an_error_on_the_way_is_shown_as_text(pair):
    def broken(view):
        raise ValueError(f"broken {HOSTILE}")

    playground = Playground(students=[pair.student, "nobody"], teachers=[ScriptedTeacher(broken)], suites=[])
    assert playground.ask(TASK).wait(60)
    assert playground.message == "ValueError: broken </pre><script>alert(1)</script>\\x1b[31m\\u202e"
    assert (playground.failed, playground.busy) == (True, False)
    assert (playground.traces[0].stop, playground.traces[0].calls[0].status) == ("interrupted", "interrupted")
    assert playground.ask(FREE, student="nobody").wait(60)
    assert "no model 'nobody'" in playground.message
    assert (len(playground.traces), playground.busy) == (1, False)


def test_the_oldest_run_goes_and_any_can_be_removed(pair):
    playground = Playground(students=[pair.student], teachers=["none"], suites=[], keep=2, max_tokens=2)
    for _ in range(3):
        playground.ask(FREE).wait(60)
    assert [run["key"] for run in playground.runs] == ["run-2", "run-3"]
    send(playground, "remove", key="run-2")
    assert [run["heading"] for run in playground.runs] == ["Run 3: relay with no teacher"]
    send(playground, "clear")
    assert (playground.runs, playground.traces) == ([], [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speed": 3}, "unknown settings speed; there are max_tokens"),
        ({"students": ["relay", "relay"]}, "two students have the same name"),
        ({"suites": ["algebra"]}, "unknown suite 'algebra'"),
        ({"keep": 0}, "keep is 0"),
    ],
)
def test_bad_settings_and_names_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Playground(**options)


def test_alternatives_are_what_the_student_would_have_written(pair, original):
    trace = pair.solve(TASK, alternatives=3)
    assert (trace.completion_ids, trace.logprobs) == (original.completion_ids, original.logprobs)
    for i, (likely, logprob) in enumerate(zip(trace.alternatives, trace.logprobs)):
        if likely is None:
            assert logprob is None
            continue
        assert 3 <= len(likely) <= 4
        assert "<call>" in likely
        assert trace.source[i] == "t" or likely[trace.pieces[i]] == pytest.approx(math.exp(logprob), abs=1e-3)
    begin = original.calls[0].start
    assert trace.alternatives[begin]["<call>"] >= trace.alternatives[begin]["<call"] > 0.5
    assert Trace.from_dict(json.loads(trace.to_json())).alternatives == trace.alternatives
    assert "alternatives" not in original.to_dict()
    shown = player_state(trace)["alternatives"]
    assert shown[begin][0] == ("<call>", trace.alternatives[begin]["<call>"])
    assert "<call" not in [text for text, _ in shown[begin]]
    assert "<call>" not in [text for text, _ in shown[begin + 1]]  # within the command no other one begins
    assert "alternatives" not in player_state(original)


def test_hostile_alternatives_are_text():
    trace = Trace("q", [1], [5], "s", ["a"], alternatives=[{HOSTILE: 0.5, "a": 0.4, "<call>": 0.1}])
    html = player(trace).html
    assert html.count("</script>") == 2
    assert not re.search("[\x1b\u202e]", html)
    with pytest.raises(ValueError, match="surrogate"):
        Trace.from_dict(trace.to_dict() | {"alternatives": [{"\ud800": 0.5}]})


# What if --------------------------------------------------------------------------------------------------------------


def test_a_forced_call_forks_from_the_very_prefix(pair, original):
    what_if = CounterfactualView(original, pair)
    assert (what_if.runs[0]["heading"], what_if.runs[0]["outcome"]) == ("Original", "right")
    assert what_if.fork(at=50, call=3).wait(60)
    fork = what_if.traces[1]
    assert fork.completion_ids[:50] == original.completion_ids[:50]
    forced = next(c for c in fork.calls if c.start == 50)
    assert (forced.requested, forced.granted, forced.forced, forced.status) == (3, 3, True, "answered")
    assert fork.source[50] == COMMAND
    assert fork.correct is not None
    stream = pair.relay(record=True).fork(original, 50, call=3)
    assert [*stream][-1].trace.completion_ids == fork.completion_ids
    shown = what_if.runs[1]
    assert (shown["fork"], shown["heading"]) == (50, "Fork 1: a call for 3 at token 51")
    assert shown["how"] == "the first 50 tokens are those of the original"


def test_a_call_is_resized_at_any_of_its_tokens(pair, original):
    what_if = CounterfactualView(original, pair)
    for at in (52, 55, 58):  # the command's first token, one within, the answer's first
        send(what_if, "fork", at=at, call=4, of=0)
        assert what_if.wait(60)
    assert not what_if.failed
    texts = {trace.text for trace in what_if.traces[1:]}
    assert len(texts) == 1
    assert [(c.start, c.requested) for c in what_if.traces[1].calls][:2] == [(21, 10), (52, 4)]
    assert what_if.runs[1]["heading"] == "Fork 1: call 2 asks for 4, not 6"
    assert what_if.runs[1]["calls"][1]["requested"] == 4


def test_a_forbidden_call_is_not_made_and_a_fork_can_be_forked(pair, original):
    what_if = CounterfactualView(original, pair)
    send(what_if, "fork", at=60, forbid=True, of=0)  # a token of the second answer
    assert what_if.wait(60)
    fork = what_if.traces[1]
    assert fork.completion_ids[:52] == original.completion_ids[:52]
    assert fork.completion_ids[52] != original.completion_ids[52]
    assert not [c for c in fork.calls if 52 <= c.start < 59]
    assert what_if.runs[1]["heading"] == "Fork 1: call 2 forbidden"
    assert what_if.fork(at=62, call=2, of=1).wait(60)
    assert what_if.traces[2].completion_ids[:62] == fork.completion_ids[:62]
    assert what_if.runs[2]["how"] == "the first 62 tokens are those of the fork 1"
    send(what_if, "remove", key="run-0")
    assert what_if.failed  # the original stays
    send(what_if, "clear")
    assert what_if.traces == [original]


RESIZE = """
const buttons = [...document.querySelectorAll("fieldset button")];
document.querySelectorAll("[role=option]")[60].click();
buttons.find((one) => one.textContent === "Change its n").click();
found.sent = sent;
"""


def test_a_call_is_resized_from_a_later_token_of_its_answer(pair, original, tmp_path):
    what_if = CounterfactualView(original, pair)
    (message,) = in_browser(tmp_path, [widget_page("counterfactual_view", runs=what_if.runs)], RESIZE)["sent"]
    assert message == {"do": "fork", "at": 52, "of": 0, "call": 6}
    send(what_if, **message)
    assert what_if.wait(60)
    assert what_if.runs[1]["heading"] == "Fork 1: call 2 asks for 6, not 6"


CHOSEN = """
set({ runs: state.later, live: {}, busy: false });
found.where = document.querySelector("[role=status]").textContent;
found.runs = document.querySelectorAll(".rl-run").length;
"""


def test_a_run_that_begins_at_its_end_can_be_shown(pair, original, tmp_path):
    what_if = CounterfactualView(original, pair, max_tokens=52)
    assert what_if.fork(at=52, forbid=True).wait(60)
    assert (what_if.runs[1]["fork"], len(what_if.runs[1]["source"])) == (52, 52)
    page = widget_page("counterfactual_view", runs=what_if.runs[:1], later=what_if.runs)
    found = in_browser(tmp_path, [page], CHOSEN)
    assert found["runs"] == 2
    assert found["where"].startswith("Chosen in Fork 1: token 52 of 52 · student")
    silent = Trace("q", [1], [5], "s", ["x"], [Call(1, 1, 2, 2, status="failed", forced=True)])
    shown = live_view.Run("run-0", "Original", "", silent).state()
    found = in_browser(tmp_path, [widget_page("counterfactual_view", runs=[shown], later=[shown])], CHOSEN)
    assert (found["runs"], found["where"][:39]) == (1, "Chosen in Original: token 1 of 1 · stud")


PAGES = """
const options = (run) => [...document.querySelectorAll(".rl-run")[run].querySelectorAll("[role=option]")];
const reached = (run) => options(run).filter((one) => one.tabIndex === 0).map((one) => one.rlIndex);
const turn = (name) => document.querySelector(`button[aria-label="${name}"]`).click();
found.first = reached(0);
turn("The next page"); found.next = [options(0).length, reached(0)];
turn("The page before"); found.before = reached(0);
set({ live: state.grown, busy: true }); found.growing = reached(1);
set({ runs: [...state.runs, state.grown], live: {}, busy: false }); found.grown = [reached(1), options(1)[5].className];
"""


def test_the_keyboard_reaches_a_token_on_every_page(tmp_path):
    n = 1300
    trace = Trace("q", [1], [5] * n, "s" * 5 + "c" + "t" * (n - 6), ["x "] * n, [Call(5, 6, n - 6, n - 6, n - 6)])
    first, grown = (live_view.Run(f"run-{k}", "Run", "", trace).state() for k in (0, 1))
    found = in_browser(tmp_path, [widget_page("counterfactual_view", runs=[first], grown=grown)], PAGES)
    assert found["first"] == [5]
    assert found["next"] == [512, [512]]
    assert found["before"] == [511]
    assert found["growing"] == [1024]
    assert found["grown"] == [[5], "rl-c rl-now"]  # the page of the call that is chosen


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(at=3), "exactly one of them"),
        (dict(at=3, call=2, forbid=True), "exactly one of them"),
        (dict(at=3, call=0), "call is 0; it must be a whole number of tokens"),
        (dict(at=3, call=2.5), "call is 2.5"),
        (dict(at=96, call=2), "at is 96; the trace has tokens 0 to 95"),
        (dict(at="3", call=2), "at is '3'"),
        (dict(at=3, forbid=True), "token 4 belongs to no call"),
        (dict(at=3, call=2, of=1), "no trace number 1; they are numbered 0 to 0"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(pair, original, change, said):
    what_if = CounterfactualView(original, pair)
    with pytest.raises(ValueError, match=said):
        what_if.fork(**change)
    send(what_if, "fork", **change)
    assert (said in what_if.message, what_if.failed) == (True, True)


def test_traces_that_do_not_fit_are_refused(pair, original):
    teachers = ("", "http://localhost:9/v1", "owner/model")
    for student, teacher in (*(("relay", name) for name in teachers), ("/models/x", "teacher"), ("../relay", "none")):
        # A trace file may be of anyone's making: it must not choose what is loaded or asked with the reader's key.
        with pytest.raises(ValueError, match="not both embedded models; give the pair"):
            CounterfactualView(Trace("q", [1], student=student, teacher=teacher))
    with pytest.raises(ValueError, match="another tokenizer than that of 'relay'"):
        CounterfactualView(Trace("q", [1], [99, 999_999], "ss", ["a", "b"]), pair)
    limits = (
        ({"max_tokens": 55}, "no room for a call at token 51: the limit is 55 tokens"),
        ({"forbid_calls": True}, "no teacher"),
    )
    for options, said in limits:
        with pytest.raises(ValueError, match=said):
            CounterfactualView(original, pair, **options).fork(at=50, call=3)
    named = CounterfactualView(original)  # loads relay and teacher, as the trace says
    assert named.fork(at=50, call=3).wait(60)
    assert named.traces[1].teacher == "teacher"


# Without a kernel -----------------------------------------------------------------------------------------------------


def test_the_record_is_an_output_of_its_own_and_is_brought_up_to_date(pair, original, monkeypatch):
    shown, updated = [], []
    monkeypatch.setattr("IPython.display.display", lambda thing, **more: shown.append((thing, more)))
    monkeypatch.setattr("IPython.display.update_display", lambda thing, **more: updated.append((thing, more)))
    playground = Playground(students=[pair.student], teachers=[ScriptedTeacher([HOSTILE])], suites=["tiles"])
    playground._ipython_display_()
    (widget, _), (record, more) = shown
    assert widget[VIEW]["model_id"] == playground.model_id
    assert widget["text/html"] == ""  # what a page shows that cannot run it
    assert record.text == "Playground: no question has been asked yet"
    playground.ask(problem("depot", 0)).wait(60)  # its call is for 17 tokens
    (record, again) = updated[-1]
    assert again["display_id"] == more["display_id"] == playground.mark
    html = record._repr_mimebundle_()["text/html"]
    assert html.count("<h4>") == 1
    assert html.startswith(f'<div class="{NO_MATH}"')  # a dollar stays a dollar
    assert "<script" not in html
    assert "&lt;script&gt;a" in re.sub("<[^>]*>", "", html)
    assert not re.search("[\x1b\u202e]", html)
    # Also where a notebook keeps the widget's state, the export has the record.
    outputs = [nbformat.v4.new_output("display_data", data) for data in (widget, {"text/html": html})]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("playground", outputs=outputs)])
    state = {playground.model_id: {"model_name": "AnyModel", "model_module": "anywidget", "state": {}}}
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": state}}
    page = HTMLExporter().from_notebook_node(book)[0]
    assert f'data-rl-record="{playground.mark}"' in page
    assert page.count("<h4>Run 1: relay with script</h4>") == 1
    # Programs that take one output get both; an executed notebook has the record alone.
    data, _ = playground._repr_mimebundle_()
    assert data[VIEW]["model_id"] == playground.model_id
    assert data["text/plain"].startswith("Run 1: relay with script: ")
    monkeypatch.setenv(RESULT, "anywhere")
    assert set(Playground(students=["relay"], teachers=["none"])._repr_mimebundle_()) == {"text/html", "text/plain"}


LESSON = f"""
import relaylab as rl
from relaylab.views.counterfactual_view import CounterfactualView
from relaylab.views.playground import Playground
pair, task = rl.load_pair("relay"), rl.problem("tiles", 0)
playground = Playground(students=[pair.student], teachers=[pair.teacher])
playground
---
playground.ask(task).wait()
---
what_if = CounterfactualView(playground.traces[0], pair)
what_if.fork(at=what_if.traces[0].calls[0].start, call=4).wait()
what_if
---
rl.result(runs=len(playground.traces), tokens=len(what_if.traces[1].source), hostile={HOSTILE!r})
"""


def test_an_executed_notebook_and_its_export_show_what_was_found(tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c.strip()) for c in LESSON.split("---")])
    nbformat.write(book, tmp_path / "lesson.ipynb")
    record = execute(tmp_path / "lesson.ipynb", tmp_path / "out")
    assert record["status"] == "done", record["error"]
    pair = load_pair("relay")
    first = pair.solve(TILES)
    forked = [*pair.relay(record=True).fork(first, first.calls[0].start, call=4)][-1].trace
    assert record["values"]["tokens"] == len(forked.source)
    done = nbformat.read(tmp_path / "out" / "lesson.ipynb", 4)
    assert "widgets" not in done.metadata
    page = HTMLExporter().from_notebook_node(done)[0]
    assert not re.search(r"widget-(view|state)\+json", page)
    # The playground stands in the first cell and was asked in the second: its record came later, into the first.
    assert page.index("<h4>Run 1: relay with teacher</h4>") < page.index("<h4>Original</h4>")
    assert f"<h4>Fork 1: call 1 asks for 4, not {first.calls[0].requested}</h4>" in page
    assert page.count('<b class="rl-good">✓ correct</b> (reference 2870)') >= 2
    strips = [re.sub("<[^>]*>", "", s) for s in re.findall(r'<pre[^>]* class="rl-strip".*?</pre>', page, re.DOTALL)]
    assert len(strips) == 3
    assert all("82*35=" in s and "2870." in s for s in strips[:2])
