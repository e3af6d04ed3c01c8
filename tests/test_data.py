"""A user's own questions: what loads, and what the errors say."""

import json
from pathlib import Path

import pytest

from relaylab.tasks.data import load_problems
from relaylab.tasks.suites import Problem


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def row(**columns) -> str:
    return json.dumps(columns) + "\n"


@pytest.mark.parametrize(
    ("question", "answer"),
    [("question", "answer"), ("problem", "target"), ("input", "final_answer"), ("prompt", "answer")],
)
def test_column_names(write, question, answer):
    assert load_problems(write("a.jsonl", row(**{question: "2+2?", answer: "4"}))) == [Problem("a-1", "a", "2+2?", "4")]


@pytest.mark.parametrize(
    ("columns", "answer", "solution"),
    [
        ({"answer": "2*3=6\n6*7=42\n#### 42"}, "42", "2*3=6\n6*7=42"),
        ({"answer": "#### 1,234"}, "1,234", ""),
        ({"answer": "x #### 5", "solution": "mine"}, "5", "mine"),
        ({"answer": 27.0}, "27", ""),
        ({"answer": 0}, "0", ""),
        ({"final_answer": ["$2^{9}$"]}, "$2^{9}$", ""),
        ({"final_answer": ["1", 2.0]}, "1, 2", ""),
        ({"solution": r"\boxed{1}, no, \boxed{\frac{1}{2}}"}, r"\frac{1}{2}", r"\boxed{1}, no, \boxed{\frac{1}{2}}"),
        ({"answer": None, "target": "6"}, "6", ""),
    ],
)
def test_answers(write, columns, answer, solution):
    (problem,) = load_problems(write("a.jsonl", row(question="q", **columns)))
    assert (problem.answer, problem.solution) == (answer, solution)


def test_ids_levels_blank_lines_and_limit(write):
    path = write("a.jsonl", row(id=7, problem="p", answer=1, level=3) + "\n" + row(problem="q", answer=2) + "broken")
    assert [(p.id, p.level) for p in load_problems(path, limit=2)] == [("7", "3"), ("a-3", "")]


def test_json_and_csv_say_the_same(write):
    expected = [("1", 'two "words",\nhere', "4"), ("2", "ü", "5")]
    rows = [{"id": i, "question": q, "answer": a} for i, q, a in expected]
    for path in (
        write("a.json", json.dumps(rows)),
        write("a.csv", b"\xef\xbb\xbf" + 'id,question,answer\n1,"two ""words"",\nhere",4\n2,ü,5\n'.encode()),
        write("B.JSONL", "".join(map(json.dumps, rows)).replace("}{", "}\r\n{")),
    ):
        assert [(p.id, p.question, p.answer) for p in load_problems(path)] == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"a\.txt: unknown ending '\.txt'; use one of \.jsonl, \.json, \.csv"),
        ("a.jsonl", row(question="q", answer="1") + "{", r"a\.jsonl, line 2: not JSON .*one JSON object"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1: not JSON"),
        ("a.jsonl", "[1]", r"line 1: a JSON list; each row must be an object"),
        ("a.jsonl", row(q="x", answer="1"), r"line 1: no question; name its column one of question, .*has q, answer"),
        ("a.jsonl", row(question=" ", answer="1"), r"line 1: no question"),
        ("a.jsonl", row(question="q"), r"line 1: no answer; name its column one of answer, .*\\boxed\{\}"),
        ("a.jsonl", row(question="q", answer=True), "line 1: no answer"),
        ("a.jsonl", row(question="q", answer="so ####"), "line 1: no answer"),
        ("a.jsonl", row(id=1, question="q", answer="1") * 2, r"line 2: the id '1' comes twice; make the ids unique"),
        (
            "a.jsonl",
            row(question="q", answer="1") + r'{"question": "\ud800", "answer": 1}',
            r"line 2: '\\ud800' is half of",
        ),
        ("a.jsonl", '{"question": "q", "answer": NaN}', r"a\.jsonl, line 1: not JSON \(NaN is no number"),
        ("a.jsonl", '{"question": "q", "answer": 1e999}', "line 1: no answer"),
        ("a.json", '[{"question": "q", "answer": -Infinity}]', r"a\.json: not JSON \(-Infinity is no number"),
        (
            "a.jsonl",
            row(question="q" + " " * 10**6 + "?", answer="1"),
            r"line 1: a text of 1,000,002 characters; at most",
        ),
        ("a.jsonl", "\n\n", r"a\.jsonl: no questions in it"),
        ("a.jsonl", b'{"question": "\xff"}', r"a\.jsonl: not UTF-8 text .*save the file as UTF-8"),
        ("a.json", '{"question": "q"}', r"a\.json: holds a JSON dict; the file must be one JSON list"),
        ("a.json", '[{"question": "q", "answer": "1"}, 5]', r"a\.json, item 2: a JSON int"),
        ("a.json", "[", r"a\.json: not JSON"),
        ("a.csv", "question,answer\nq,1\nq,1,000\n", r"a\.csv, line 3: more fields than the header; put fields"),
        ("a.csv", 'question,answer\n"q"x,1\n', r"a\.csv, after line 1: not CSV .*double quotes"),
        ("a.csv", "question,answer\nq\n", r"a\.csv, line 2: no answer"),
    ],
)
def test_errors_name_file_line_and_remedy(write, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_problems(write(name, content))


def test_fields_name_the_columns(write):
    path = write("a.jsonl", row(question="wrong", ask="2+2?", key="4", answer="5"))
    (problem,) = load_problems(path, question_field="ask", answer_field="key")
    assert (problem.question, problem.answer) == ("2+2?", "4")
    with pytest.raises(
        ValueError, match=r"line 1: no question; name its column q \(it has question, ask, key, answer\)"
    ):
        load_problems(path, question_field="q")


def test_a_whole_surrogate_pair_is_a_character_and_a_limit_positive(write):
    path = write("a.jsonl", r'{"question": "\ud83d\ude00", "answer": 1}')
    assert load_problems(path)[0].question == "\U0001f600"
    with pytest.raises(ValueError, match="at least 1"):
        load_problems(path, limit=0)


SYSTEM, ASKED, TOLD = (
    {"role": role, "content": text} for role, text in (("system", "Be short."), ("user", "2+2?"), ("assistant", "=4"))
)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"messages": [ASKED], "answer": "4"}, ("2+2?", "4", "", ())),
        ({"prompt": [SYSTEM, ASKED], "answer": 4}, ("2+2?", "4", "", (SYSTEM,))),
        ({"messages": [SYSTEM, ASKED, TOLD, ASKED], "answer": "4"}, ("2+2?", "4", "", (SYSTEM, ASKED, TOLD))),
        ({"messages": [ASKED, TOLD | {"content": r"\boxed{4}."}]}, ("2+2?", "4", r"\boxed{4}.", ())),
        ({"messages": [ASKED, TOLD | {"content": "2+2=4\n#### 4"}]}, ("2+2?", "4", "2+2=4", ())),
        ({"question": "1+1?", "answer": "2", "messages": [SYSTEM, ASKED]}, ("1+1?", "2", "", ())),
    ],
)
def test_conversations_are_read(write, columns, expected):
    (p,) = load_problems(write("talk.jsonl", row(**columns)))
    assert (p.question, p.answer, p.solution, p.history) == expected
    assert p.messages("Box it.") == [*p.history, {"role": "user", "content": p.question + "\nBox it."}]
    path = write("own.jsonl", row(talk=next(iter(columns.values())), answer=expected[1]))
    assert load_problems(path, question_field="talk")[0].history == expected[3]


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([SYSTEM], "must end with the user's question"),
        ([TOLD], "must end with the user's question"),
        ([ASKED, {"role": "user"}], "needs a role and a content"),
        ([ASKED, "text"], "needs a role and a content"),
    ],
)
def test_conversations_that_cannot_be_read_name_the_line(write, messages, error):
    with pytest.raises(ValueError, match=f"line 1: .*{error}"):
        load_problems(write("talk.jsonl", row(messages=messages, answer="4")))
