"""The front door in Python: files that go on where they stopped, seeds, terms; and that the embedded pair is one."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import torch

from relaylab.engine import load as zoo
from relaylab.engine.load import embedded, load_engine, load_model
from relaylab.relay.api_teacher import APITeacher
from relaylab.relay.call_rules import CallAt
from relaylab.relay.config import RelayConfig
from relaylab.relay.pair import Pair, load_pair, load_teacher, relay_config
from relaylab.relay.teachers import NoTeacher, ScriptedTeacher, TeacherOutput
from relaylab.tasks.grading import grade
from relaylab.tasks.suites import SUITES, Problem, level_of, problem, problems
from relaylab.trace import Trace, TraceWriter, from_dataset, read_traces, to_dataset
from relaylab.training.config import make_config
from relaylab.training.grpo import _order
from relaylab.training.rollouts import Rollouts, prompt_key
from relaylab.views.player import player
from relaylab.views.trace_view import trace_html
from relaylab.zoo.verify import required, verify, write_manifest

if TYPE_CHECKING:
    from relaylab.training.policy_model import PolicyModel

PROBLEMS = [*problems("savings", 3), *problems("depot", 3)]
CALLS = CallAt({6: 2})
TERMS = dict(call_rule=CALLS, temperature=1.0, max_tokens=40, progress=False)


@pytest.fixture(scope="module")
def student():
    return load_engine("student")


def pair(student, script=lambda view: "12"[: view.n], **attributes) -> Pair:
    teacher = ScriptedTeacher(script)
    for name, value in attributes.items():
        setattr(teacher, name, value)
    return Pair(student, teacher)


def test_a_torn_file_is_taken_up_where_it_stopped(student, tmp_path):
    out = tmp_path / "deep" / "t.jsonl"
    whole = pair(student).decode(PROBLEMS, out=out, **TERMS)
    assert [t.id for t in whole] == [p.id for p in PROBLEMS]
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(
        b"".join(lines[:2]) + b'{"version":2,"prompt":"' + b" " * 200_000
    )  # longer than what is read at a time
    second = pair(student)
    assert second.decode(PROBLEMS, out=out, **TERMS) == whole
    assert len(second.teacher.requests) == 4  # one call a row, and four rows were left
    assert {t.id: t for t in read_traces(out)} == {t.id: t for t in whole}
    assert len(out.read_bytes().splitlines()) == 6
    third = pair(student)
    assert third.decode(PROBLEMS[:2], out=out, **TERMS) == whole[:2]
    assert not third.teacher.requests


@pytest.mark.parametrize(
    "other",
    [
        dict(temperature=0.5),
        dict(top_p=0.9),
        dict(top_k=5),
        dict(max_tokens=41),
        dict(max_calls=1),
        dict(max_call_tokens=1),
        dict(call_rule=CallAt({6: 3})),
        dict(call_rule=None),
        dict(forbid_calls=True),
        dict(on_failure="exclude"),
        dict(record=True),
        dict(seed=1),
    ],
    ids=str,
)
def test_a_file_of_other_terms_is_refused(student, tmp_path, other):
    out = tmp_path / "t.jsonl"
    pair(student).decode(PROBLEMS[:1], out=out, **TERMS)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=rf"t\.jsonl was made with .*{next(iter(other))} was .*choose another"):
        pair(student).decode(PROBLEMS, out=out, **TERMS | other)
    assert out.read_bytes() == before


def test_a_file_of_another_pair_is_refused(student, tmp_path):
    out = tmp_path / "t.jsonl"
    pair(student, temperature=0.0).decode(PROBLEMS[:1], out=out, **TERMS)
    with pytest.raises(ValueError, match=r"teacher_temperature was 0\.0, is 1\.0"):
        pair(student, temperature=1.0).decode(PROBLEMS, out=out, **TERMS)
    with pytest.raises(ValueError, match='teacher was "script"'):
        pair(student, temperature=0.0, name="other").decode(PROBLEMS, out=out, **TERMS)
    with TraceWriter(out) as writer:  # a trace that no decode made
        writer.write(replace(next(read_traces(out)), config={}))
    with pytest.raises(ValueError, match="seed was null"):
        pair(student, temperature=0.0).decode(PROBLEMS, out=out, **TERMS)


def test_a_file_of_another_precision_is_refused(student, tmp_path):
    """bfloat16 gives other answers than float32; the file shall not hold both."""
    out = tmp_path / "t.jsonl"
    rounded = load_engine("student", dtype=torch.bfloat16)
    before = pair(rounded).decode(PROBLEMS[:1], out=out, **TERMS)
    with pytest.raises(ValueError, match=r'student_weights was "[0-9a-f]{16} bfloat16", is "[0-9a-f]{16}"'):
        pair(student).decode(PROBLEMS, out=out, **TERMS)
    assert pair(rounded).decode(PROBLEMS[:1], out=out, **TERMS) == before


def test_a_folder_named_as_an_embedded_model_holds_another_student(tmp_path):
    mine = tmp_path / "relay" / "student"
    shutil.copytree(embedded()["student"], mine)
    engine = load_engine(mine)
    assert engine.name == "relay"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pair(engine, NoTeacher()).solve("Why is the sky blue?", max_tokens=2)
    with pytest.warns(UserWarning, match="know nothing else"):
        Pair(load_engine("relay"), NoTeacher()).solve("Why is the sky blue?", max_tokens=2)


def test_a_policy_is_known_again_though_it_has_no_repr_of_its_own(student, tmp_path):
    class Never:
        uses_entropy = False

        def __call__(self, moment):
            return None

    for _ in range(2):
        traces = pair(student).decode(PROBLEMS[:1], out=tmp_path / "t.jsonl", **TERMS | dict(call_rule=Never()))
    assert traces[0].config["call_rule"].endswith("Never object>")


@pytest.mark.parametrize(
    ("name", "value"),
    [("question", "7"), ("answer", "7"), ("kind", "number"), ("unit", "m"), ("tolerance", 10.0)],
)
def test_another_problem_under_the_same_id_is_refused(student, tmp_path, name, value):
    out = tmp_path / "t.jsonl"
    pair(student).decode(PROBLEMS[:2], out=out, **TERMS)
    with pytest.raises(ValueError, match=f"another {name} under the id 'savings-test-0-1'"):
        pair(student).decode([PROBLEMS[0], replace(PROBLEMS[1], **{name: value})], out=out, **TERMS)


def test_ids_must_differ(student):
    with pytest.raises(ValueError, match="'savings-test-0-1' comes twice"):
        pair(student).decode([*PROBLEMS, PROBLEMS[1]], **TERMS)


def test_excluded_rows_are_decoded_anew_and_their_old_lines_go(student, tmp_path):
    out, failing = tmp_path / "t.jsonl", {PROBLEMS[1].question, PROBLEMS[4].question}

    def broken(view):
        return TeacherOutput("", "error", error="down") if view.messages[-1]["content"] in failing else "12"

    terms = TERMS | dict(on_failure="exclude")
    first = pair(student, broken).decode(PROBLEMS, out=out, **terms)
    assert [t.stop == "excluded" for t in first] == [p.question in failing for p in PROBLEMS]
    pair(student).decode(PROBLEMS[:2], out=out, **terms)  # asks for one of the two: the other keeps its line
    assert sorted(t.id for t in read_traces(out)) == sorted(p.id for p in PROBLEMS)
    last = pair(student).decode(PROBLEMS, out=out, **terms)
    assert last == pair(student).decode(PROBLEMS, **terms)
    assert {t.id: t for t in read_traces(out)} == {t.id: t for t in last}
    assert len(out.read_bytes().splitlines()) == 6
    assert [f.name for f in tmp_path.iterdir() if f.name[0] != "."] == ["t.jsonl"]


def test_a_problems_seed_depends_on_the_run_and_its_id_alone(student):
    def seeds(chosen, seed=0):
        traces = Pair(student, NoTeacher()).decode(chosen, seed=seed, temperature=1.0, max_tokens=20, progress=False)
        return {t.id: (t.seed, t.completion_ids) for t in traces}

    whole = seeds(PROBLEMS)
    assert seeds(PROBLEMS[::-1]) == whole
    assert seeds(PROBLEMS[2:4]) == {p.id: whole[p.id] for p in PROBLEMS[2:4]}
    other = seeds(PROBLEMS, seed=1)
    assert len({seed for seed, _ in [*whole.values(), *other.values()]}) == 12
    assert all(0 <= seed < 2**63 for seed, _ in whole.values())


def test_traces_are_graded_and_know_their_problem(student):
    p = problem("savings", 0)
    alone = Pair(student, NoTeacher())
    trace = alone.decode([p], progress=False)[0]
    assert trace.correct is grade(trace.teacher_view, p.answer)
    assert (trace.id, trace.problem["suite"], trace.problem["steps"][0]["kind"]) == (p.id, "savings", "sum")
    assert alone.solve(p, seed=trace.seed, record=False).completion_ids == trace.completion_ids
    assert alone.solve(p).correct is trace.correct
    assert alone.solve(p.question).correct is None
    said = iter([f"\\boxed{{{p.answer}}}", "\\boxed{1}"])
    told = pair(student, lambda view: TeacherOutput(next(said), "stop"))
    assert [told.solve(p, call_rule=CallAt({0: 40})).correct for _ in range(2)] == [True, False]


def test_caps_come_as_limits_or_one_by_one(student):
    both = pair(student)
    assert both.relay(max_tokens=7, max_calls=0, temperature=1.0).config == RelayConfig(
        max_tokens=7, max_calls=0, temperature=1.0
    )
    assert both.relay(config=RelayConfig(max_tokens=8)).config.max_tokens == 8
    both.defaults = {"max_tokens": 9, "max_calls": 1}  # the caps of a training
    assert both.relay(max_calls=2).config == RelayConfig(max_tokens=9, max_calls=2)
    assert both.relay(config=RelayConfig(max_tokens=8)).config == RelayConfig(max_tokens=8)


def test_texts_are_questions_without_a_grade(student):
    (trace,) = pair(student).decode(["What is 2+2?"], max_tokens=30, progress=False)
    assert (trace.id, trace.prompt, trace.correct) == ("question-0", "What is 2+2?", None)


def test_shards_together_are_the_whole(student, tmp_path):
    out = tmp_path / "t.jsonl"
    parts = [pair(student).decode(PROBLEMS, out=out, shard=f"{i}/2", **TERMS) for i in (1, 2)]
    assert [t.id for t in parts[1]] == [p.id for p in PROBLEMS[1::2]]
    last = pair(student)
    assert last.decode(PROBLEMS, out=out, **TERMS) == pair(student).decode(PROBLEMS, **TERMS)
    assert not last.teacher.requests  # nothing was decoded again
    assert len(list(read_traces(out))) == 6


def test_a_trace_with_a_failed_call_is_decoded_anew(student, tmp_path):
    out = tmp_path / "t.jsonl"
    dead = pair(student, [TeacherOutput("", "error", error="down")])
    assert all(c.status == "failed" for t in dead.decode(PROBLEMS[:2], out=out, **TERMS) for c in t.calls)
    again = pair(student).decode(PROBLEMS[:2], out=out, **TERMS)
    assert again == pair(student).decode(PROBLEMS[:2], **TERMS)
    assert len(list(read_traces(out))) == 2


@pytest.mark.parametrize(
    "content", [b'{"question": "2+2"}', b'{"version": "0.2.0"}', b"no line break", bytes(50), b"a\nb\n"]
)
def test_a_file_that_is_not_ours_is_left_alone(student, tmp_path, content):
    out = tmp_path / "mine.jsonl"
    out.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.jsonl"):
        pair(student).decode(PROBLEMS[:1], out=out, **TERMS)
    assert out.read_bytes() == content


def test_another_model_of_the_same_name_is_refused(tmp_path):
    for parent, name in (("a", "student"), ("b", "warmup")):
        shutil.copytree(embedded()["student"], tmp_path / parent / "mine")
        model = load_model(name)[0]
        model.save_pretrained(tmp_path / parent / "mine")
    pairs = [Pair(load_engine(tmp_path / parent / "mine"), NoTeacher()) for parent in "ab"]
    out, options = tmp_path / "t.jsonl", dict(max_tokens=4, progress=False)
    traces = pairs[0].decode(problems("tiles", 1), out=out, **options)
    assert pairs[0].decode(problems("tiles", 1), out=out, **options) == traces
    with pytest.raises(ValueError, match="student_weights was"):
        pairs[1].decode(problems("tiles", 1), out=out, **options)


def test_a_rule_and_a_teacher_whose_source_changed_are_refused(student, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = (
        "from relaylab.relay.teachers import NoTeacher\nclass Mine(NoTeacher): word = 1\ndef rule(s): return None\n"
    )
    edits = {"word = 1": "word = 2", "return None": "return 3"}

    def decode(text: str, limit: int) -> list:
        (tmp_path / "my_rules.py").write_text(text)
        sys.modules.pop("my_rules", None)
        mine = importlib.import_module("my_rules")
        options = dict(call_rule=mine.rule, out=tmp_path / "t.jsonl", max_tokens=4, progress=False)
        return Pair(student, mine.Mine()).decode(PROBLEMS[:limit], **options)

    first = decode(source, 1)
    assert decode(f"{source}\n# what is not theirs may change\n", 2)[:1] == first
    for before, after in edits.items():
        with pytest.raises(ValueError, match=r"own_code\.(Mine|rule) was"):
            decode(source.replace(before, after), 2)


def test_two_writers_of_one_file_are_told_apart(student, tmp_path):
    with TraceWriter(tmp_path / "t.jsonl"), pytest.raises(ValueError, match="another relaylab process"):
        pair(student).decode(PROBLEMS[:1], out=tmp_path / "t.jsonl", **TERMS)


def test_teachers_by_name():
    assert isinstance(load_teacher("none"), NoTeacher)
    both = load_pair("student", "student", device="cpu", teacher_options=dict(temperature=0.5))
    assert both.teacher.temperature == 0.5
    assert both.teacher.engine is not both.student
    assert load_pair("student", ScriptedTeacher(["1"])).teacher.name == "script"
    with pytest.raises(ValueError, match="made already"):
        load_pair("student", ScriptedTeacher(["1"]), teacher_options=dict(temperature=1.0))
    with pytest.raises(ValueError, match=r"no model 'nobody': .* the embedded ones; there are "):
        load_teacher("nobody")
    url = "http://127.0.0.1:9/v1#m"
    assert load_pair("student", url, device="cpu", teacher_options=dict(name="mine")).teacher.name == "mine"
    mixed = load_pair("student", f"a={url} b=teacher", device="cpu", teacher_options=dict(timeout=9.0))
    assert mixed.teacher.name == "a=m@127.0.0.1:9 b=teacher"


def test_an_embedded_model_has_its_name_wherever_one_stands(tmp_path, monkeypatch):
    (tmp_path / "run" / "student").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run")
    assert load_engine("student").name == "student"


# The embedded pair ----------------------------------------------------------------------------------------------------


def test_the_embedded_pair_is_what_the_manifest_says_and_what_it_should_be():
    assert zoo.MANIFEST.exists(), "make it with: relaylab zoo verify --write --count 200"
    assert [f.text for f in verify(count=0) if not f.ok] == []


def scored(**levels: int) -> dict:
    return {"scores": {s: {"level": level_of(s), "right": levels.get(level_of(s), 50), "count": 100} for s in SUITES}}


def test_what_is_required_of_a_pair():
    good = {"student": scored(easy=85, hard=24), "teacher": scored(easy=95, hard=95, beyond=29)}
    assert all(f.ok for f in required(good))
    for name, levels in [
        ("student", dict(easy=84, hard=24)),
        ("student", dict(easy=85, hard=25)),
        ("teacher", dict(easy=94, hard=95, beyond=29)),
        ("teacher", dict(easy=95, hard=89, beyond=29)),
        ("teacher", dict(easy=95, hard=95, beyond=30)),
    ]:
        wrong = [f.text for f in required(good | {name: scored(**levels)}) if not f.ok]
        assert len(wrong) == 1
        assert wrong[0].startswith(name)
    one = scored(easy=85, hard=24)
    one["scores"]["depot"] = {"level": "hard", "right": 0, "count": 0}
    assert [f.text for f in required(good | {"student": one}) if not f.ok] == [
        "student: hard suites below 25.0 %: tiles 24.0 %, depot -, harvest 24.0 %"
    ]
    assert sum(not f.ok for f in required({})) == 5


def test_a_manifest_needs_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "MANIFEST", tmp_path / "manifest.json")
    with pytest.raises(ValueError, match="count is 0"):
        write_manifest(count=0)
    assert not zoo.MANIFEST.exists()


def test_fresh_scores_are_compared(student, tmp_path, monkeypatch):
    entry = {"sha256": zoo.checksum(zoo.embedded()["student"]), "scores": {"savings": {"right": 0, "count": 10}}}
    monkeypatch.setattr(zoo, "MANIFEST", tmp_path / "manifest.json")
    zoo.MANIFEST.write_text(json.dumps({"student": entry}))
    monkeypatch.setattr("relaylab.engine.load.embedded", lambda: {"student": zoo.WEIGHTS / "student"})
    told = {f.text: f.ok for f in verify(count=10) if "manifest" in f.text}
    assert told["student: checksum as in the manifest"]
    del told["student: checksum as in the manifest"]
    assert next(text for text in told if "savings" in text).endswith("manifest 0.0 %")
    assert sum(text.endswith("manifest -") for text in told) == len(told) - 1
    assert not any(told.values())


# Conversations ------------------------------------------------------------------------------------------------------

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is 7+5?"},
    {"role": "assistant", "content": "12."},
    {"role": "user", "content": "And 8+5?"},
]
SHORT = dict(call_rule=CallAt({2: 2}), max_tokens=12)


def test_a_conversation_of_one_question_is_the_question(student, tmp_path):
    one, out = [{"role": "user", "content": "And 8+5?"}], tmp_path / "a.jsonl"
    solved, same = (pair(student).solve(q, **SHORT) for q in ("And 8+5?", one))
    assert same == replace(solved, calls=[replace(c, latency=d.latency) for c, d in zip(solved.calls, same.calls)])
    assert "history" not in same.to_dict()
    decoded = pair(student).decode([one], out=out, progress=False, **SHORT)
    assert pair(student).decode(["And 8+5?"], out=out, progress=False, **SHORT) == decoded
    assert "history" not in decoded[0].problem


def test_a_conversation_is_read_whole_and_recorded(student, tmp_path):
    seen = []
    asker = pair(student, lambda view: seen.append(view.messages) or "12")
    trace = asker.solve(TALK, **SHORT)
    assert trace.prompt_ids == student.prompt_ids(TALK) != student.prompt_ids(TALK[-1:])
    assert (trace.prompt, trace.history, seen) == ("And 8+5?", TALK[:-1], [TALK])
    again = asker.relay(record=True, **SHORT).fork(trace, 0)
    assert [*again][-1].trace.completion_ids == trace.completion_ids
    assert seen == [TALK, TALK], "forks see the conversation"
    assert Trace.from_dict(json.loads(trace.to_json())) == trace
    assert next(iter(from_dataset(to_dataset([trace, asker.solve("1+1?", **SHORT)])))) == trace
    # With a file, and graded: the same again; another conversation under the same id is refused.
    ask, options = Problem("t", "talk", "And 8+5?", "13", history=tuple(TALK[:-1])), dict(progress=False, **SHORT)
    (done,) = asker.decode([ask], out=tmp_path / "t.jsonl", **options)
    assert (done.prompt_ids, done.problem["history"], done.correct) == (trace.prompt_ids, TALK[:-1], False)
    assert asker.decode([ask], out=tmp_path / "t.jsonl", **options) == [done]
    with pytest.raises(ValueError, match="has another conversation under the id 't'"):
        asker.decode([replace(ask, history=())], out=tmp_path / "t.jsonl", **options)
    for html in (trace_html(done), player(done).html):
        assert "[system] Be short." in html
        assert "[assistant] 12." in html


@pytest.mark.parametrize(
    ("talk", "options", "error"),
    [
        (TALK[:3], {}, "ends with a message of the user"),
        ([], {}, "ends with a message of the user"),
        (TALK, {"system": "Be long."}, "has a system message of its own"),
        ([{"role": "user"}], {}, "dicts with the texts 'role' and 'content'; this is none"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            {},
            "dicts with the texts 'role' and 'content'; this is none",
        ),
        ({"role": "user", "content": "1+1?"}, {}, "a list of dicts .*, not"),
        ("1+1?", {"seed": -1, "temperature": 1.0}, "a seed is 0 or more, not -1"),
    ],
)
def test_conversations_that_cannot_be_asked(student, talk, options, error):
    with pytest.raises(ValueError, match=error):
        pair(student).solve(talk, **options)


def test_rollouts_tell_conversations_that_end_alike_apart(student):
    other = [{"role": "user", "content": "What is 1+1?"}, TALK[2]]
    ask = [Problem(f"t{i}", "talk", "And 8+5?", str(i), history=tuple(h)) for i, h in enumerate((TALK[:-1], other, ()))]
    prompts = {prompt_key(p.messages()): p for p in ask}
    assert len(prompts) == 3
    rows = [row["prompt"] for row in _order(list(prompts), 3, seed=0)]  # as TRL hands them over
    config = make_config(student="warmup", output_dir="runs/x")
    rollouts = Rollouts(config, cast("PolicyModel", None), [], prompts, Path())
    rollouts.relays = [pair(student).relay(**SHORT)]
    twice = [messages for messages in rows for _ in range(2)]
    traces = rollouts.run(twice, 2, tag="0")
    for messages, trace in zip([m for m in rows for _ in range(2)], traces, strict=True):
        assert trace.prompt_ids == student.prompt_ids(messages)
        assert trace.problem["answer"] == prompts[prompt_key(messages)].answer
    assert {t.problem["answer"] for t in traces} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("trained", "given", "expected"),
    [
        ({"fixed_call_tokens": 2}, {}, (2, "tokens")),
        ({"fixed_call_tokens": 2}, {"call_end": "line"}, (None, "line")),
        ({"fixed_call_tokens": 2}, {"call_end": "tokens"}, (None, "tokens")),
        ({"call_end": "line"}, {"fixed_call_tokens": 7}, (7, "tokens")),
        ({"call_end": "line"}, {"fixed_call_tokens": None}, (None, "line")),
    ],
)
def test_an_end_of_calls_that_is_given_replaces_a_trained_one(student, trained, given, expected):
    config = Pair(student, NoTeacher(), trained | {"max_calls": 3}).relay(**given).config
    assert (config.fixed_call_tokens, config.call_end, config.max_calls) == (*expected, 3)


def test_an_option_that_no_teacher_takes_is_refused():
    for wrong in ("devcie", "timeout"):
        with pytest.raises(TypeError, match=f"none of the teachers 'a=student b=teacher' takes '{wrong}'"):
            load_teacher("a=student b=teacher", **{wrong: 1})


def test_a_rule_is_known_by_what_it_holds(student, tmp_path):
    """A threshold in a closure, a default or an attribute is the obvious way to write a sweep."""

    def closed(n):
        return lambda state: 2 if state.since >= n else None

    def default(n):
        def rule(state, n=n):
            return 2 if state.since >= n else None

        return rule

    class Held:
        uses_entropy = False

        def __init__(self, n):
            self.n = n

        def __call__(self, state):
            return 2 if state.since >= self.n else None

    for k, rule in enumerate((closed, default, Held)):
        out = tmp_path / f"{k}.jsonl"
        first = pair(student).decode(PROBLEMS[:1], out=out, **TERMS | dict(call_rule=rule(5)))
        assert pair(student).decode(PROBLEMS[:1], out=out, **TERMS | dict(call_rule=rule(5))) == first
        with pytest.raises(ValueError, match=r"call_rule was .*n=5.*, is .*n=9"):
            pair(student).decode(PROBLEMS[:1], out=out, **TERMS | dict(call_rule=rule(9)))
    long = [relay_config(pair(student).relay(call_rule=Held([*range(k)])), seed=0)["call_rule"] for k in (4000, 4001)]
    assert long[0] != long[1]
    assert max(map(len, long)) < 400, "it stands in every trace"


def test_what_else_a_server_is_told_is_part_of_the_configuration(student):
    def told(**options):
        teacher = APITeacher("http://127.0.0.1:1/v1", "m", **options)
        return relay_config(Pair(student, teacher).relay(), seed=0)

    plain, cut, forced = told(), told(extra_body={"top_p": 0.1, "key": "SECRET"}), told(mode="completions")
    assert plain != cut != told(extra_body={"top_p": 0.2})
    assert plain != forced
    assert "SECRET" not in json.dumps(cut)
    assert cut == told(extra_body={"key": "SECRET", "top_p": 0.1})


HUB = """
import json, torch
from relaylab.engine.load import load_engine, relay_defaults
from relaylab.training.policy_model import base_model, load_trainable
from safetensors.torch import load_file
model, _ = load_trainable("me/adapter", device="cpu")
here, there = (load_engine(name).model for name in ("me/adapter", "relay"))
ids = torch.tensor([[5, 6, 7]])
same = all(torch.allclose(m(ids).logits, there(ids).logits, atol=1e-3) for m in (here, model))
print(json.dumps([same, base_model("me/adapter"), relay_defaults("me/adapter"), relay_defaults("me/full")]))
"""


def test_an_adapter_on_the_hub_is_an_adapter_and_a_student_there_has_its_caps(tmp_path):
    """From the hub's cache, as a machine without a network has it."""
    for name, folder in (("adapter", embedded()["relay"]), ("full", embedded()["warmup"])):
        home = tmp_path / f"models--me--{name}"
        shutil.copytree(folder, home / "snapshots" / "abc")
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("abc")
    caps = {"max_calls": 2, "call_end": "line"}
    (tmp_path / "models--me--full" / "snapshots" / "abc" / "relay_config.json").write_text(json.dumps(caps))
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", HUB], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, "warmup", zoo.relay_defaults("relay"), caps]
