"""The record: lengths, ratios, files that survive a crash."""

from __future__ import annotations

import json
import re
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaylab.trace import PROBLEMS, Call, Trace, TraceWriter, from_dataset, read_traces, to_dataset, to_frame


@st.composite
def traces(draw) -> Trace:
    n = draw(st.integers(0, 12))
    pieces = draw(st.lists(st.text(max_size=6), min_size=n, max_size=n))
    source = "".join(draw(st.lists(st.sampled_from("stc"), min_size=n, max_size=n)))
    numbers = st.lists(st.none() | st.floats(-50, 0), min_size=n, max_size=n)
    calls = []
    if n >= 3:
        status = draw(st.sampled_from(["answered", "failed", "empty"]))
        calls = [Call(0, 1, draw(st.none() | st.integers(1, 99)), 2, draw(st.integers(0, 2)), status=status)]
    return Trace(
        prompt=draw(st.text(max_size=20)), prompt_ids=draw(st.lists(st.integers(0, 999), max_size=5)),
        completion_ids=list(range(n)), source=source, pieces=pieces, calls=calls, stop=draw(st.sampled_from(["end",
        "length", ""])), logprobs=draw(st.none() | numbers), entropies=draw(st.none() | numbers), seed=draw(st.none()
        | st.integers(0, 2**40)), id=draw(st.text(max_size=9)), problem=draw(st.just({}) | st.just({"suite": "x",
        "answer": "1"})), correct=draw(st.none() | st.booleans()),
    )  # fmt: skip


@given(traces())
def test_json_there_and_back(trace):
    line = trace.to_json()
    assert "\n" not in line
    assert Trace.from_dict(json.loads(line)) == trace


@given(traces())
def test_counts_and_ratio(trace):
    n = len(trace.completion_ids)
    assert sum(trace.count(s) for s in "stc") == n
    assert trace.call_ratio == (trace.source.count("t") / n if n else 0.0)
    assert "".join(text for _, text in trace.segments()) == trace.text
    turns = [kind for kind, _ in groupby(trace.source.replace("c", "s"))]
    assert [kind for kind, _ in trace.segments()] == turns


def test_the_teachers_view_keeps_its_own_tags():
    trace = Trace("q", [1], [1, 2, 3, 4], "scts", ["a", "<call>1</call>", "<call>7</call>", "b"], [Call(1, 2, 1, 1, 1)])
    assert trace.teacher_view == "a<call>7</call>b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(source="ss"), "source has 2 entries for 3"),
        (dict(pieces=["a"]), "pieces has 1"),
        (dict(logprobs=[0.0]), "logprobs has 1"),
        (dict(source="sxs"), "unknown sources"),
        (dict(calls=[Call(1, 2, 5, 5, 5)]), "outside of its 3 tokens"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(change, message):
    good = dict(prompt="q", prompt_ids=[1], completion_ids=[1, 2, 3], source="sct", pieces=["a", "b", "c"])
    with pytest.raises(ValueError, match=message):
        Trace(**good | change)


@given(st.lists(traces(), max_size=4), st.integers(1, 40))
def test_a_file_torn_anywhere_in_its_last_line_loses_that_line_alone(tmp_path_factory, batch, cut):
    path = tmp_path_factory.mktemp("traces") / "t.jsonl"
    with TraceWriter(path) as out:
        for t in batch:
            out.write(t)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    torn = whole[: max(last, len(whole) - cut)]
    path.write_bytes(torn)
    kept = batch if torn == whole else batch[:-1]
    assert list(read_traces(path)) == kept
    with TraceWriter(path) as out:  # appending cuts the torn line off first
        out.write(Trace("more", [1], id="z"))
    assert [*kept, Trace("more", [1], id="z")] == list(read_traces(path))


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "t.jsonl"
    good = Trace("q", [1]).to_json()
    path.write_text(f"{good}\n{{\n{good}\n")
    with pytest.raises(ValueError, match=r"t\.jsonl, line 2"):
        list(read_traces(path))
    path.write_text(good.replace('"version":2', '"version":99') + "\n")
    with pytest.raises(ValueError, match="version 99"):
        list(read_traces(path))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"problem": None}, "problem"),
        ({"pieces": [1]}, "pieces.0"),
        ({"correct": "yes"}, "correct"),
        ({"correct": 1}, "correct"),
        ({"calls": [{"start": 0, "end": 1, "latency": "fast"}]}, "latency"),
        ({"calls": [{"start": 0.5, "end": 1}]}, "start"),
        ({"calls": [{"start": 0, "end": 1, "speed": 1}]}, "speed"),
        ({"calls": 5}, "calls"),
        ({"problem": {"suite": 5}}, "suite"),
        ({"seed": "0"}, "seed"),
        ({"speed": 1}, "speed"),
        ({"id": "\ud800"}, "surrogate"),
        ({"problem": {"question": "\ud800"}}, "surrogate"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_its_line(tmp_path, change, place):
    path = tmp_path / "t.jsonl"
    good = Trace("q", [1], [5], "s", ["a"]).to_dict()
    path.write_text("".join(json.dumps(line) + "\n" for line in (good, good | change)))
    with pytest.raises(ValueError, match=rf"t\.jsonl, line 2: .*{place}"):
        list(read_traces(path))


def test_dataset_and_frame():
    calls = [Call(1, 2, 3, 3, 1, 1)]
    one = Trace("q", [1], [1, 2, 3, 4], "scts", list("abcd"), calls, "end", problem={"suite": "x"}, correct=True)
    two = Trace("r", [1], seed=3)
    assert list(from_dataset(to_dataset([one, two]))) == [one, two]
    columns = ["tokens", "teacher_tokens", "command_tokens", "call_ratio", "calls", "mean_n", "first_call"]
    assert to_frame([one, two])[columns].iloc[0].tolist() == [4, 1, 1, 0.25, 1, 1.0, 1]
    assert to_frame([one, two]).iloc[1].call_ratio == 0


PIECES = st.sampled_from(["<call", ">", "</", "call", "<call>", "x", "", "7<", "</call>y"])


@given(st.lists(st.tuples(PIECES, st.sampled_from("sct"))))
def test_tag_tokens_are_those_of_commands_and_those_that_touch_a_tag(tokens):
    """Against the definition, written out: each token, each match of a tag in the whole text."""
    pieces, source = [p for p, _ in tokens], "".join(s for _, s in tokens)
    trace = Trace("q", [1], list(range(len(tokens))), source, pieces)
    spans = [m.span() for m in re.finditer("</?call>?", "".join(pieces))]
    expected = 0
    for i, (piece, letter) in enumerate(tokens):
        begin = sum(map(len, pieces[:i]))
        touches = any(a < begin + len(piece) and b > begin for a, b in spans)
        expected += letter == "c" or (letter == "s" and touches)
    assert trace.tag_tokens == expected
    content = len(tokens) - expected
    assert trace.content_ratio == (source.count("t") / content if content else 0)


def test_a_call_is_lost_once_nobody_will_answer_it():
    lost = {s: Call(0, 1, 1, status=s).lost for s in ("answered", "waiting", "failed", "refused", *PROBLEMS)}
    assert [status for status, is_lost in lost.items() if not is_lost] == ["answered", "waiting"]


def test_a_long_body_of_few_characters_is_no_call_for_grading_either():
    """A relay counts bytes, so both tags stay in what the teacher sees, and the answer between them counts."""
    text = "<call>\u7b54\u6848\u662f \\boxed{12} \u5143\u4eba\u6c11\u5e01</call>"
    assert len(text) - len("<call></call>") <= 32 < len(text.encode()) - len("<call></call>")
    assert Trace("q", [1], [5], "s", [text]).teacher_view == text
    assert Trace("q", [1], [5, 6], "ss", ["\u00fc<call>2</call>", "\u7b54"]).teacher_view == "\u00fc\u7b54"
