"""Benchmarks: what their rows become, subsets that are the same for everybody, and real files where there are any."""

from __future__ import annotations

import json
import random
from pathlib import Path

import datasets
import pytest
from shared_benchmarks import COUNTS, SHARED

from relaylab.relay.pair import graded
from relaylab.tasks.benchmarks import BENCHMARKS, Benchmark, benchmark, load_benchmark
from relaylab.tasks.grading import grade_problem
from relaylab.tasks.suites import SUITES, Problem, problems
from relaylab.trace import Trace

# A row of each data set as the hub gives it: the columns that matter, and those that must not be mistaken for them.
HUB = {
    "math500": ({"problem": "q", "solution": "s", "answer": "x", "level": 4, "unique_id": "t/1"}, "math500-t/1", "x"),
    "gsm8k": ({"question": "q", "answer": "2*3=6\n#### 6"}, "gsm8k-", "6"),
    "minerva_math": ({"question": "q", "answer": "4e33"}, "minerva_math-", "4e33"),
    "olympiadbench": (
        {"id": 7, "question": "q", "final_answer": ["1,2"], "solution": ["s"], "unit": None, "error": None}
        | {"is_multiple_answer": True, "answer_type": "Numerical"},
        "olympiadbench-7",
        "1,2",
    ),
    "aime24": ({"id": 60, "problem": "q", "solution": "s", "answer": "204", "year": "2024"}, "aime24-60", "204"),
    "aime25": ({"problem": "q", "answer": "70", "id": "0"}, "aime25-0", "70"),
    "amc23": ({"id": 0, "question": "q", "answer": "27.0", "url": "u"}, "amc23-0", "27.0"),
    "bbeh": ({"task": "t", "input": "q", "target": "(B)", "mini": 0}, "bbeh-", "(B)"),
    "bbeh_mini": ({"task": "t", "input": "q", "target": "(B)", "mini": 1}, "bbeh_mini-", "(B)"),
    "mmlu_pro": (
        {"question_id": 3, "question": "q", "options": ["a", "b"], "answer": "B", "answer_index": 1, "category": "law"},
        "mmlu_pro-3",
        "B",
    ),
    "supergpqa": (
        {"uuid": "u1", "question": "q", "options": ["a", "b"], "answer": "a", "answer_letter": "A"},
        "supergpqa-u1",
        "A",
    ),
    "gsm8k_train": ({"question": "q", "answer": "#### 6"}, "gsm8k_train-", "6"),
    "dapo17k": ({"prompt": "q", "solution": "34", "data_source": "math_dapo", "ability": "MATH"}, "dapo17k-", "34"),
}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_registry_has_all_of_the_paper_and_all_suites():
    asked = "MATH-500, GSM8K, Minerva, OlympiadBench, AIME-2024, AIME-2025, AMC-23, BBEH, MMLU-Pro, SuperGPQA, DAPO-17k"
    found = [benchmark(title) for title in asked.split(", ")]
    assert all(b.hub for b in found)
    assert {b.name for b in found} | {"bbeh_mini", "gsm8k_train", *SUITES} == set(BENCHMARKS)
    assert [b.title for b in found if b.samples == 32] == ["AIME-2024", "AIME-2025", "AMC-23"]
    assert [b.name for b in BENCHMARKS.values() if b.training] == ["gsm8k_train", "dapo17k"]
    assert set(HUB) == set(BENCHMARKS) - set(SUITES)
    with pytest.raises(ValueError, match=r"unknown benchmark 'gsm9k'; there are math500, gsm8k, .*savings"):
        load_benchmark("gsm9k")


@pytest.mark.parametrize("name", HUB)
def test_rows_of_the_hub(name, monkeypatch):
    row, begin, answer = HUB[name]
    asked = []

    def load(*args, **options):
        asked.append((*args, options["split"]))
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load)
    (problem,) = load_benchmark(name)
    assert asked == [(BENCHMARKS[name].hub, BENCHMARKS[name].config, BENCHMARKS[name].split)]
    assert problem.id.startswith(begin)
    assert (problem.suite, problem.answer) == (name, answer)
    assert problem.question == ("q\nA. a\nB. b" if BENCHMARKS[name].options else "q")
    assert problem.kind == ("several" if name == "olympiadbench" else BENCHMARKS[name].kind)
    assert not (name == "dapo17k" and problem.solution)


def test_only_the_mini_rows_of_bbeh_mini(monkeypatch):
    rows = [{"input": f"q{i}", "target": "x", "mini": i % 2} for i in range(6)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: datasets.Dataset.from_list(rows))
    assert [p.question for p in load_benchmark("bbeh_mini")] == ["q1", "q3", "q5"]
    assert len(load_benchmark("bbeh")) == 6


def test_yes_and_no_of_a_csv_file_are_texts(tmp_path):
    (tmp_path / "bbeh_mini.csv").write_text("input,target,mini\na,x,1\nb,x,0\nc,x,False\nd,x,True\n")
    assert [p.question for p in load_benchmark("bbeh_mini", path=tmp_path)] == ["a", "d"]
    head = "question,final_answer,answer_type,is_multiple_answer\n"
    (tmp_path / "olympiadbench.csv").write_text(head + 'q,4.2,Numerical,False\nr,"1,3",Numerical,True\n')
    assert [p.kind for p in load_benchmark("olympiadbench", path=tmp_path)] == ["number", "several"]


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("Couldn't reach 'openai/gsm8k' on the Hub\nand so on", "go online once (it is cached then)"),
        (
            "Dataset 'openai/gsm8k' is a gated dataset on the Hub.",
            "it is gated: accept its terms at https://huggingface.co/datasets/openai/gsm8k "
            "and log in with `hf auth login`",
        ),
    ],
)
def test_a_data_set_that_cannot_be_loaded(monkeypatch, message, remedy):
    def load(*args, **options):
        raise datasets.exceptions.DatasetsError(message)

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ConnectionError) as error:
        load_benchmark("gsm8k")
    begin = f"GSM8K: openai/gsm8k could not be loaded from the hub ({message.splitlines()[0]}); "
    assert str(error.value) == f"{begin}{remedy}, or give path, a local file with question, answer"


def test_olympiad_rows_say_how_they_are_graded(tmp_path):
    common = {"question": "q", "is_multiple_answer": False, "unit": None, "error": None}
    path = write(
        tmp_path / "olympiadbench.jsonl",
        common | {"id": 1, "final_answer": ["4.2"], "answer_type": "Numerical", "unit": "%", "error": "1e-1"},
        common | {"id": 2, "final_answer": ["$2n$"], "answer_type": "Expression"},
        common | {"id": 3, "final_answer": ["1,3"], "answer_type": "Numerical", "is_multiple_answer": True},
    )
    found = load_benchmark("olympiadbench", path=path)
    assert [(p.kind, p.unit, p.tolerance) for p in found] == [
        ("number", "%", 0.1),
        ("expression", "", 0.0),
        ("several", "", 0.0),
    ]
    assert grade_problem(r"\boxed{4.28\%}", found[0])
    with pytest.raises(ValueError, match=r"line 1: the column error holds '1,2'; it must be a number"):
        load_benchmark("olympiadbench", path=write(path, common | {"final_answer": ["4"], "error": "1,2"}))


def test_minerva_numbers_have_a_relative_tolerance(tmp_path):
    path = write(tmp_path / "m.jsonl", {"problem": "q", "solution": r"\boxed{2e4}"}, {"problem": "r", "answer": "x^2"})
    number, other = load_benchmark("minerva_math", path=path)
    assert (number.tolerance, other.tolerance) == (2.0, 0.0)
    assert grade_problem(r"\boxed{20001}", number)
    assert not grade_problem(r"\boxed{20003}", number)


def test_subsets_are_the_same_whatever_the_order_and_grow(tmp_path):
    rows = [{"question": f"q{i}", "answer": str(i)} for i in range(40)]
    shuffled = random.Random(0).sample(rows, 40)
    a, b = write(tmp_path / "a.jsonl", *rows), write(tmp_path / "b.jsonl", *shuffled)

    def ids(path: Path, limit: int | None, seed: int = 0) -> list[str]:
        return [p.id for p in load_benchmark("gsm8k", path=path, limit=limit, seed=seed)]

    assert set(ids(a, 10)) == set(ids(b, 10))
    assert set(ids(a, 10)) < set(ids(a, 20)) < set(ids(a, 99)) == set(ids(a, None))
    assert set(ids(a, 10)) != set(ids(a, 10, seed=1))
    everything = ids(a, None)
    assert [i for i in everything if i in ids(a, 10)] == ids(a, 10)  # in the file's order


def test_a_question_that_comes_twice_is_taken_once_and_must_have_one_answer(tmp_path):
    row = {"question": "q", "answer": "1"}
    assert len(load_benchmark("gsm8k", path=write(tmp_path / "a.jsonl", row, row))) == 1
    with pytest.raises(ValueError, match=r"line 2: the id 'gsm8k-\w{12}' came before, with another question or answer"):
        load_benchmark("gsm8k", path=write(tmp_path / "a.jsonl", row, row | {"answer": "2"}))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"options": ["a"], "answer": "A"}, "line 1: the column options must be a list of 2 to 26"),
        ({"answer": "A"}, "line 1: the column options must be a list"),
        ({"options": ["a", "b"], "answer": "C"}, "the answer is 'C'; it must be one of the letters AB"),
        ({"options": ["a", "b"], "answer": "AB"}, "the answer is 'AB'"),
    ],
)
def test_broken_choices_are_named(tmp_path, columns, message):
    path = write(tmp_path / "mmlu_pro.jsonl", {"question": "q"} | columns)
    with pytest.raises(ValueError, match=message):
        load_benchmark("mmlu_pro", path=path)


def test_folders_limits_and_benchmarks_of_ones_own(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no gsm8k\.jsonl, \.json or \.csv"):
        load_benchmark("gsm8k", path=tmp_path)
    (tmp_path / "gsm8k.csv").write_text("question,answer\nq,5\n")
    assert load_benchmark("gsm8k", path=tmp_path)[0].answer == "5"
    (tmp_path / "gsm8k.jsonl").write_text("")
    with pytest.raises(ValueError, match="no questions in it"):
        load_benchmark("gsm8k", path=tmp_path)
    with pytest.raises(ValueError, match="limit is 0"):
        load_benchmark("gsm8k", path=tmp_path, limit=0)
    mine = Benchmark("mine", "Mine", question="ask", kind="text", level="topic")
    (problem,) = load_benchmark(mine, path=write(tmp_path / "x.jsonl", {"ask": "q", "answer": "yes", "topic": "t"}))
    assert (problem.suite, problem.kind, problem.level) == ("mine", "text", "t")
    with pytest.raises(ValueError, match="mine names no data set on the hub; give path"):
        load_benchmark(mine)


def test_embedded_suites_have_the_same_interface():
    assert load_benchmark("savings", limit=3, seed=5) == problems("savings", 3, seed=5)
    assert len(load_benchmark("galaxy")) == 200
    with pytest.raises(ValueError, match="embedded suite, made and not read"):
        load_benchmark("savings", path="x.jsonl")


def test_traces_are_graded_by_kind():
    trace = graded(Trace("?", [1], [2], "s", [r"\boxed{\text{(b)}}"]), Problem("a", "mine", "?", "B", kind="letter"))
    assert (trace.correct, trace.problem["kind"]) == (True, "letter")


@pytest.mark.parametrize("name", COUNTS)
def test_every_reference_of_the_real_files_is_right_by_itself(name):
    if not (SHARED / f"{name}.jsonl").exists():
        pytest.skip(f"{SHARED} has no {name}.jsonl; set RELAYLAB_SHARED to the folder that holds benchmarks/")
    found = load_benchmark(name, path=SHARED)
    assert len(found) == COUNTS[name]
    wrong = [(p.id, p.answer) for p in found if not grade_problem(rf"\boxed{{{p.answer}}}", p)]
    assert wrong == []
