"""Training from settings: what is in a file, what wins, what is refused, and the command line over it."""

from __future__ import annotations

import json

import pytest

from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import mixture
from relaylab.training import run as module
from relaylab.training.data_filter import load_rates
from relaylab.training.run import read_config, train


@pytest.fixture
def asked(monkeypatch):
    """What reaches GRPO, without running it."""
    calls = []

    def grpo(student, teachers, problems, out, **options):
        calls.append({"student": student, "teachers": teachers, "problems": problems, "out": out} | options)
        return out

    grpo.__signature__ = module.inspect.signature(module.grpo)
    monkeypatch.setattr(module, "grpo", grpo)
    return calls


def write(path, text):
    path.write_text(text)
    return path


def test_keywords_win_over_the_file(tmp_path, asked):
    config = write(tmp_path / "c.yaml", "student: warm\nteacher: none\ncount: 18\nsteps: 7\nlimits: {max_tokens: 90}\n")
    train(config, out=tmp_path / "run", steps=3)
    (call,) = asked
    assert (call["student"], call["steps"], call["limits"].max_tokens) == ("warm", 3, 90)
    stream = mixture(seed=1)
    assert call["problems"] == [next(stream) for _ in range(18)], "the nine suites in turn, of the training split"
    assert all(p.id.split("-")[1] == "train" for p in call["problems"])


def test_a_setting_that_nothing_knows_is_named_with_its_neighbour(tmp_path, asked):
    for given, words in (
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"zzz": 1}, "unknown setting 'zzz'$"),
        ({"limits": {"tokens": 3}}, r"unknown limits \['tokens'\]"),
        ({"filter": {"sample": 3}}, r"unknown settings of the filter \['sample'\]"),
        ({"filter": {}, "teacher": "none"}, "needs a teacher"),
    ):
        with pytest.raises(ValueError, match=words):
            train(**{"student": "warm", "teacher": ScriptedTeacher(["x"]), "out": tmp_path / "run", "count": 9} | given)
    with pytest.raises(ValueError, match="needs 'out'"):
        train(student="warm")
    with pytest.raises(ValueError, match=r"holds a list"):
        train(write(tmp_path / "list.yaml", "- a\n"))
    with pytest.raises(ValueError, match="embedded/relay"):
        read_config("embedded/nothing")
    assert not asked


def test_the_filter_keeps_what_the_teacher_solves_half_of_the_time(tmp_path, asked):
    """A teacher that solves every problem but those of one suite, and one suite every other time."""
    answers = {}
    turns: dict[str, int] = {}

    def solves(context, n):
        problem = answers[context.messages[0]["content"]]
        turns[problem.id] = turns.get(problem.id, 0) + 1
        right = {"tiles": False, "depot": turns[problem.id] % 2 == 0}.get(problem.suite, True)
        return TeacherOutput(f"\\boxed{{{problem.answer if right else 'x'}}}", "stop", tokens=4)

    stream = mixture(seed=1)
    chosen = [next(stream) for _ in range(18)]
    answers.update({p.question: p for p in chosen})
    teacher = ScriptedTeacher(solves)
    train(student="warm", teacher=teacher, out=tmp_path / "run", count=18, filter={"samples": 4}, progress=False)
    kept = {p.suite for p in asked[0]["problems"]}
    assert "tiles" not in kept
    assert len(kept) == 8
    rates = load_rates(tmp_path / "run" / "rates.jsonl")
    assert {r.rate for r in rates if r.problem.suite == "depot"} == {0.5}
    # The same rates serve another threshold, and nobody is asked again.
    asked_before = len(teacher.requests)
    given = {"rates": str(tmp_path / "run" / "rates.jsonl"), "threshold": 0.6}
    train(student="warm", teacher="none", out=tmp_path / "other", count=18, filter=given)
    assert len(teacher.requests) == asked_before
    assert {p.suite for p in asked[1]["problems"]} == kept - {"depot"}
    with pytest.raises(ValueError, match=r"no rate of 9 problems"):
        train(student="warm", teacher="none", out=tmp_path / "more", count=27, filter=given)


def test_several_teachers(tmp_path, asked):
    one = ScriptedTeacher(["a"], name="one")
    train(student="warm", teacher=[one, "none"], out=tmp_path / "run", count=9)
    assert [t.name for t in asked[0]["teachers"]] == ["one", "none"]


def test_a_run_from_a_file_by_the_command_line(tmp_path, capsys, monkeypatch):
    from relaylab import cli

    config = write(
        tmp_path / "c.yaml",
        "student: warm\nteacher: none\nreward: outcome\nsuites: [savings]\ncount: 4\nsteps: 1\nprompts: 2\ngroup: 2\n"
        "limits: {max_tokens: 24}\ndevice: cpu\nprogress: false\n",
    )
    monkeypatch.setattr("sys.argv", ["relaylab", "train", str(config), "-s", f"out={tmp_path / 'run'}", "-s", "seed=5"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 0
    assert "student" in capsys.readouterr().out
    terms = json.loads((tmp_path / "run" / "terms.json").read_text())
    assert (terms["seed"], terms["reward"], len(terms["problems"])) == (5, "outcome", 4)
    assert (tmp_path / "run" / "student" / "adapter_model.safetensors").exists()
