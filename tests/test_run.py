"""Training from settings: Python, YAML and the command line are one thing, and what cannot be is refused at once."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from trl import TrlParser

from relaylab.relay.teachers import NamedTeachers, ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import ALL_SUITES, Problem, mixture
from relaylab.training import grpo as module
from relaylab.training.config import RelayGRPOConfig, make_config, parse_config
from relaylab.training.configs import config_names, read_config
from relaylab.training.data_filter import load_rates, pass_rates
from relaylab.training.grpo import train
from relaylab.training.run_dir import read_metrics

NEEDED = {"student": "warmup", "output_dir": "runs/x"}
SUFFIX = r"Please reason step by step, and put your final answer within \boxed{}."


@pytest.fixture
def trained(monkeypatch) -> list:
    """(config, teachers, problems) of what would be trained."""
    calls = []
    monkeypatch.setattr(
        module, "_train", lambda config, teachers, problems, *_: calls.append((config, teachers, problems))
    )
    return calls


# Settings -----------------------------------------------------------------------------------------------------------


def test_python_yaml_and_the_command_line_are_one_thing(tmp_path):
    file, whole = tmp_path / "c.yaml", tmp_path / "whole.yaml"
    file.write_text(
        "extends: embedded/relay\noutput_dir: runs/x\nlearning_rate: 1e-3\nmax_calls: null\nlora: {r: 4}\n"
        "suites: [tiles]\nwarmup_steps: 5\n"
    )
    whole.write_text(json.dumps(read_config(file)))
    args = ["--output_dir", "runs/x", "--learning_rate", "1e-3", "--max_calls", "null", "--suites", "tiles"]
    settings = dict(learning_rate="1e-3", max_calls=None, lora={"r": 4}, suites=["tiles"], warmup_steps=5)
    configs = [
        make_config(file),
        parse_config("embedded/relay", [*args, "--warmup-steps", "5", "--lora", "{r: 4}"]),
        make_config("embedded/relay", output_dir="runs/x", **settings),
        RelayGRPOConfig(**read_config("embedded/relay") | settings, output_dir="runs/x"),
        *TrlParser(RelayGRPOConfig).parse_args_and_config(["--config", str(whole)]),
    ]
    for config in configs:
        assert config.bound == configs[0].bound
        assert (config.learning_rate, config.max_calls, config.lora, config.seed) == (1e-3, None, {"r": 4}, 1)
        assert (config.teacher, config.filter_threshold, config.max_steps) == (["teacher"], 0.5, 400)
    assert make_config(configs[0], max_steps=3).max_steps == 3
    assert parse_config(file, ["--teacher", "none", "teacher", "--no_mask_teacher"]).teacher[0] == "none"


def test_a_teachers_size_is_a_number_or_a_mapping_in_all_of_them(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "student: warmup\noutput_dir: runs/x\nreward: cost_aware\nteacher_size: {small: 2, large: 1e1}\n"
    )
    settings, sizes = NEEDED | {"reward": "cost_aware"}, {"small": 2.0, "large": 10.0}
    args = ["--output_dir", "runs/x", "--reward", "cost_aware", "--student", "warmup"]
    for config in (
        make_config(tmp_path / "c.yaml"),
        parse_config(tmp_path / "c.yaml"),
        parse_config(tmp_path / "c.yaml", [*args, "--teacher_size", "{small: 2, large: 1e1}"]),
        make_config(**settings, teacher_size={"small": "2", "large": 10}),
        *TrlParser(RelayGRPOConfig).parse_args_and_config(["--config", str(tmp_path / "c.yaml")]),
    ):
        assert config.reward_options == {"scheme": "cost_aware", "cost_weight": 0.1, "teacher_size": sizes}
        assert config.bound["teacher_size"] == sizes
    for config in (parse_config(tmp_path / "c.yaml", ["--teacher_size", "7"]), make_config(**settings, teacher_size=7)):
        assert config.reward_options["teacher_size"] == 7.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(learning_rat=1), "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
        (dict(zzz=1), "unknown setting 'zzz'; the relay's own are output_dir, max_steps"),
        (dict(student=""), "needs student"),
        (dict(output_dir=""), "needs output_dir"),
        # types
        (dict(learning_rate=float("nan")), "learning_rate is nan"),
        (dict(beta=float("inf")), "beta is inf"),
        (dict(max_steps="many"), "max_steps is 'many'"),
        (dict(max_steps=1.5), "max_steps is 1.5"),
        (dict(max_steps=True), "max_steps is True; it is no switch"),
        (dict(max_completion_length="x"), "max_completion_length is 'x'"),
        (dict(student=5), "student is 5"),
        (dict(teacher=5), "teacher is 5"),
        (dict(lora="[1"), "lora: not YAML"),
        (dict(reward="best"), "no reward 'best'"),
        # sizes
        (dict(max_steps=10**9), "max_steps is 1000000000; it must be at least 1 and at most 1e"),
        (dict(num_problems=10**9), "num_problems is"),
        (dict(temperature=0), "temperature is 0"),
        (dict(num_generations=1), "num_generations is 1; it must be at least 2"),
        (dict(keep_rollouts=-1), "keep_rollouts is -1"),
        (dict(save_steps=0), "save_steps is 0"),
        (dict(per_device_train_batch_size=12), "it must be a multiple of num_generations, 8"),
        (dict(gradient_accumulation_steps=2, steps_per_generation=3), "a multiple of gradient_accumulation_steps, 2"),
        (dict(steps_per_generation=3), "max_steps is 200; it must be a multiple of the steps on a batch"),
        (dict(suites=["tile"]), r"unknown suites \['tile'\]"),
        # what TRL would take, and a relay run cannot honour
        (dict(reward="simple", cost_weight=0.3), "cost_weight does nothing for this reward"),
        (dict(teacher_size={"small": 2}), "teacher_size does nothing for this reward"),
        (dict(reward="cost_aware", teacher_size={"small": -2}), "teacher_size is -2.0; it must be at least 0"),
        (dict(reward="cost_aware", teacher_size={"small": "x"}), "teacher_size is {'small': 'x'}"),
        (dict(reward="cost_aware", teacher_size="large"), "teacher_size is 'large'; write a mapping"),
        (dict(reward="cost_aware", teacher_size={"a": 2}), r"the teacher 'teacher' has the names \(none"),
        (
            dict(reward="cost_aware", teacher_size={"a": 2, "c": 3}, teacher="a=student b=teacher"),
            "has the names a, c; the teacher 'a=student b=teacher' has the names a, b",
        ),
        (dict(top_p=0.5), "top_p does nothing in a relay run: rollouts follow temperature alone"),
        (dict(use_vllm=True), "use_vllm does nothing in a relay run: relaylab's own engine"),
        (dict(chat_template_kwargs={"enable_thinking": True}), "chat_template_kwargs does nothing"),
        (dict(gradient_checkpointing=False), "use activation_checkpointing"),
        (dict(num_train_epochs=2), "use max_steps"),
        (dict(generation_batch_size=8), "use steps_per_generation"),
        (dict(save_strategy="no"), "see save_steps"),
        (dict(hub_token="hf_x"), "hf upload"),
        (dict(use_liger_kernel=True), "leave it out"),
        (dict(reward="simple", bonus=2), "bonus does nothing for this reward"),
        (dict(released_code=True, ratio="paper"), "ratio does nothing for this reward"),
        (dict(released_code=True, reward="simple"), "released_code has a reward of its own"),
        (dict(released_code=True, credit_calls=True), "no command to credit"),
        (dict(lora={"rank": 4}), "lora: .*'rank'"),
        (dict(lora={"use_dora": True}), "use_dora cannot be trained here"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        train(**NEEDED | {"output_dir": tmp_path / "run"} | settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--output_dr", "x"], "did you mean 'output_dir'"),
        (["--max_steps", "many"], "--max_steps.*'many'"),
        (["--max_steps"], "expected one argument"),
        (["stray"], "unknown setting 'stray'"),
    ],
)
def test_a_command_line_that_cannot_be_is_one_error(args, words):
    with pytest.raises(ValueError, match=words):
        parse_config("embedded/relay", args)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", "holds a list"),
        ("max_steps: 1\nmax_steps: 2\n", "twice"),
        ("extends: embedded/rely\n", "did you mean 'embedded/relay'"),
        ("3: 4\n", "unknown setting 3"),
        ("limits: {max_tokens: 3}\n", "unknown setting 'limits'"),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        make_config(tmp_path / "c.yaml")
    with pytest.raises(ValueError, match="is no file and no shipped run"):
        read_config("embedded/nothing")


def test_a_config_for_trl_has_what_the_relay_decides(tmp_path):
    shape = dict(per_device_train_batch_size=8, gradient_accumulation_steps=2, steps_per_generation=4)
    config = make_config(**NEEDED, **shape, max_completion_length=50, call_end="line", max_calls=2)
    assert (config.steps_per_batch, config.prompts_per_batch) == (2, 4)
    assert (config.relay.max_tokens, config.relay.max_calls, config.relay.call_end) == (50, 2, "line")
    args = config.trl_config(tmp_path / "c", bf16=False)
    assert (args.output_dir, args.max_completion_length, args.steps_per_generation) == (str(tmp_path / "c"), 50, 4)
    assert (args.logging_steps, args.beta, args.use_bias_correction_kl, args.shuffle_dataset) == (1, 0.01, False, False)
    assert make_config(**NEEDED, num_iterations=4, save_steps=4).steps_per_batch == 4


# Shipped settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", config_names())
def test_shipped_settings_are_settings(name):
    make_config(name, **{} if "output_dir" in read_config(name) else {"output_dir": "runs/x"})


@pytest.mark.parametrize("name", [name for name in config_names() if name.startswith("qwen3/")])
def test_qwen3_settings_are_the_papers_where_memory_allows(name):
    config = make_config(name)
    assert config.prompt_suffix == SUFFIX
    assert (config.num_generations, config.beta, config.temperature) == (8, 0.01, 1.0)
    assert config.learning_rate == (1e-6 if config.full else 1e-5)
    assert (config.filter_threshold, config.filter_samples) == (0.5, 10)
    assert config.activation_checkpointing
    gpus = int(re.findall(r"(?:(\d+)x)?\d+gb", name)[0] or 1)
    update = config.per_device_train_batch_size * config.gradient_accumulation_steps // config.num_generations
    assert update * gpus == 32  # prompts of a mini-batch
    assert config.max_completion_length <= 8192
    # In bf16 a step of 1e-6 is lost; in float32 without autocast, since caches have the type of the weights.
    assert (config.dtype == "float32") == (config.bf16 is False) == config.student.endswith("-full") == config.full


# What is trained on -------------------------------------------------------------------------------------------------


def test_problems_are_those_of_the_suites_in_turn(tmp_path, trained):
    train("embedded/grpo", output_dir=tmp_path / "run", num_problems=18, max_steps=3)
    ((config, teachers, problems),) = trained
    assert (config.max_steps, config.seed, [t.name for t in teachers]) == (3, 1, ["none"])
    stream = mixture(seed=1, suites=ALL_SUITES)
    assert problems == [next(stream) for _ in range(18)]
    assert all(p.id.split("-")[1] == "train" for p in problems)


def test_the_filter_keeps_what_the_teacher_solves_half_of_the_time(tmp_path, trained):
    """A teacher that solves every problem but those of one suite, and one suite every other time."""
    answers, turns = {}, dict[str, int]()

    def solves(view):
        problem = answers[view.messages[0]["content"]]
        turns[problem.id] = turns.get(problem.id, 0) + 1
        right = {"tiles": False, "depot": turns[problem.id] % 2 == 0}.get(problem.suite, True)
        return TeacherOutput(f"\\boxed{{{problem.answer if right else 'x'}}}", "stop", tokens=4)

    stream = mixture(seed=1)
    chosen = [next(stream) for _ in range(18)]
    answers.update({p.question: p for p in chosen})
    teacher = ScriptedTeacher(solves)
    options = dict(student="warmup", num_problems=18, disable_tqdm=True)
    train(teachers=[teacher], output_dir=tmp_path / "run", filter_threshold=0.5, filter_samples=4, **options)
    kept = {p.suite for p in trained[0][2]}
    assert "tiles" not in kept
    assert len(kept) == 8
    rates = load_rates(tmp_path / "run" / "rates.jsonl")
    assert {r.rate for r in rates if r.problem.suite == "depot"} == {0.5}
    # Of teachers with names the largest is asked.
    named = NamedTeachers({"large": teacher, "small": ScriptedTeacher(["x"])})
    cost = options | {"reward": "cost_aware", "filter_threshold": 0.5, "filter_samples": 4}
    train(teachers=[named], output_dir=tmp_path / "named", teacher_size={"small": 2, "large": 9}, **cost)
    assert trained.pop()[2] == trained[0][2]
    with pytest.raises(ValueError, match="asks the largest of large, small: give teacher_size by name"):
        train(teachers=[named], output_dir=tmp_path / "number", teacher_size=9, **cost)
    with pytest.raises(ValueError, match="a pass rate is that of one teacher, and there are large, small"):
        pass_rates(named, chosen, tmp_path / "rates.jsonl")
    # The same rates serve another threshold, and nobody is asked again.
    again = dict(teacher="none", filter_rates=str(tmp_path / "run" / "rates.jsonl"), filter_threshold=0.6)
    train(output_dir=tmp_path / "other", **options | again)
    assert {p.suite for p in trained[1][2]} == kept - {"depot"}
    with pytest.raises(ValueError, match=r"no rate of 9 problems"):
        train(output_dir=tmp_path / "more", **options | again | {"num_problems": 27})
    with pytest.raises(ValueError, match="needs a teacher"):
        train(output_dir=tmp_path / "none", **options | {"teacher": "none", "filter_threshold": 0.5})
    with pytest.raises(ValueError, match=r"teacher_options: .*speed"):
        train(output_dir=tmp_path / "none", **options, teacher_options={"speed": 1})


def test_a_question_is_taken_once_and_two_answers_are_refused_at_once(tmp_path, trained):
    options = dict(student="warmup", teacher="none", reward="outcome")
    train(output_dir=tmp_path / "suite", suites=["measures"], **options)  # two of its first 900 come again
    stream = mixture(seed=1, suites=["measures"])
    first = {p.question: p.id for p in reversed([next(stream) for _ in range(902)])}
    assert len(first) == 900
    assert {p.question: p.id for p in trained[0][2]} == first
    data = tmp_path / "mine.jsonl"
    rows = [{"id": name, "question": "2+2?", "answer": answer} for name, answer in (("a", "4"), ("b", "4"), ("c", "5"))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    train(output_dir=tmp_path / "file", data=str(data), **options)
    assert [p.id for p in trained[1][2]] == ["a"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="the problems 'a' and 'c' have the same question and different answers"):
        train(output_dir=tmp_path / "two", data=str(data), filter_threshold=0.5, **options)
    assert not (tmp_path / "two").exists()


def rates_of(path, asked, right):
    """Pass rates of a teacher that solves the first ``right`` problems."""
    answers = [rf"\boxed{{{p.answer if k < right else 'x'}}}" for k, p in enumerate(asked)]
    path.unlink(missing_ok=True)
    pass_rates(ScriptedTeacher(answers), asked, path, samples=1, progress=False)
    return str(path)


def test_a_file_of_rates_gives_rates_and_the_data_the_problems(tmp_path, trained):
    old = [Problem("a", "mine", "2+2?", "5"), Problem("b", "mine", "3+3?", "6")]
    rates = rates_of(tmp_path / "rates.jsonl", old, 2)
    new = [replace(old[0], level="hard"), old[1]]
    options = dict(student="warmup", teacher="none", filter_rates=rates, filter_threshold=0.5)
    train(problems=new, output_dir=tmp_path / "same", **options)
    assert trained[0][2] == new
    for other in ({"answer": "4"}, {"kind": "number", "tolerance": 0.5}):
        new = [replace(old[0], **other), old[1]]
        with pytest.raises(
            ValueError, match=r"rates\.jsonl has no rate of 1 problems, 'a' first: .*grading must be the same"
        ):
            train(problems=new, output_dir=tmp_path / str(len(other)), **options)


def test_a_resumed_run_has_the_problems_that_it_began_with(tmp_path, trained):
    asked, down = (
        [Problem(f"p{k}", "mine", f"{k}+0?", str(k)) for k in range(4)],
        TeacherOutput("", "error", error="no"),
    )
    answers = {p.question: TeacherOutput(rf"\boxed{{{p.answer}}}", "stop", tokens=4) for p in asked}
    options = dict(student="warmup", problems=asked, filter_threshold=0.5, disable_tqdm=True)

    def kept(out, failing=(), **settings):
        replies = answers | dict.fromkeys(failing, down)
        teacher = ScriptedTeacher(lambda view: replies[view.messages[0]["content"]])
        train(teachers=[teacher], output_dir=tmp_path / out, **options | settings)
        return [p.id for p in trained[-1][2]]

    with pytest.warns(UserWarning, match="10 of 40 samples failed"):
        assert kept("run", ["2+0?"]) == ["p0", "p1", "p3"]
    assert kept("run") == ["p0", "p1", "p3"]  # the teacher is back
    assert kept("another") == ["p0", "p1", "p2", "p3"]
    for right in (3, 1):  # the file of rates has changed
        assert kept("file", filter_rates=rates_of(tmp_path / "r.jsonl", asked, right)) == ["p0", "p1", "p2"]
    with pytest.raises(ValueError, match="leaves no problems to train on; lower filter_threshold"):
        kept("none", filter_rates=rates_of(tmp_path / "r.jsonl", asked, 0))
    assert not (tmp_path / "none" / "kept.json").exists()


def test_a_run_from_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "student: warmup\nteacher: none\nreward: outcome\nsuites: [savings]\nnum_problems: 4\nmax_steps: 1\n"
        "per_device_train_batch_size: 4\nnum_generations: 2\nmax_completion_length: 24\nuse_cpu: true\n"
    )
    out = train(parse_config(tmp_path / "c.yaml", ["--output_dir", str(tmp_path / "run"), "--seed", "5"]))
    bound = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (bound["seed"], bound["reward"], bound["problems"]) == (5, "outcome", 4)
    assert not {"hub_token", "teacher_options", "output_dir"} & bound.keys()
    assert (out / "adapter_model.safetensors").exists()
    assert (read_metrics(tmp_path / "run")[["calls", "call_ratio"]] == 0).all(axis=None), "plain GRPO"
