"""What lessons say in words about their own results, compared with the results."""

from __future__ import annotations

import ast
import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import relaylab as rl
from lesson import graded
from lesson.checks import EXERCISES, NotYet, check
from relaylab.call_tag import format_call
from relaylab.cost import ModelPrices, Prices, costs, hand_offs, usage
from relaylab.evaluation.counterfactual import call_effects
from relaylab.evaluation.learning import calls_at
from relaylab.evaluation.placement import calls_frame
from relaylab.evaluation.scorecard import Names
from relaylab.evaluation.table import trace_files, trace_name
from relaylab.memory import GB, QWEN3, shipped
from relaylab.sweep.notebook import read_parameters
from relaylab.sweep.results import effects, read_results
from relaylab.tasks.suites import ALL_SUITES, TAUGHT, level_of
from relaylab.tasks.worlds import HARD_KINDS
from relaylab.training.config import make_config
from relaylab.training.configs import config_names, read_config
from relaylab.training.data_filter import pass_rates
from relaylab.views.atlas import read_labelled
from relaylab.views.theme import ROLES

HOME = Path(__file__).parents[1]


def sources(number: str) -> dict[str, str]:
    path = next((HOME / "notebooks").glob(f"{number}_*.ipynb"))
    return {cell["id"]: "".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"]}


def test_00_says_where_the_student_is_unsure():
    """At the wrong digit of the product, and at the one before it; three of the teacher's tokens mend it."""
    cells = sources("00")
    wanted = re.search(r"(\d+)·(\d+) = 3552.*hard product: (\d+)", cells["cell-13"], re.S)
    assert wanted
    left, right, guessed = wanted.groups()
    assert int(left) * int(right) == 3552
    assert "The highest peak is at the wrong digit" in cells["cell-15"]
    assigned = ast.parse(cells["cell-04"]).body[0]
    assert isinstance(assigned, ast.Assign)
    question = ast.literal_eval(assigned.value)
    trace = rl.load_pair("plain/student", "none").solve(question)
    assert f"{left}*{right}={guessed}" in trace.text
    ranked = sorted(range(len(trace.entropies)), key=lambda i: -trace.entropies[i])
    before = ["".join(trace.pieces[: i + 1]).rpartition("=")[2] for i in ranked[:2]]
    wrong = next(k for k, (a, b) in enumerate(zip(guessed, "3552"), 1) if a != b)
    assert before == [guessed[:wrong], guessed[: wrong - 1]], "the wrong digit, and the one before it"

    assert "Three tokens were enough" in cells["cell-19"]
    pair = rl.load_pair("plain/warmup", "teacher")
    helped = pair.solve(question, call_rule=rl.CallWhenUnsure(0.6, 8, most=3))
    start, right_at = helped.answered[0].start, {}
    for n in (2, 3):
        *_, done = pair.relay(record=True).fork(helped, start, call=n)
        right_at[n] = done.trace.text.endswith("\\boxed{3552}.")
    assert right_at == {2: False, 3: True}


def test_01_says_what_a_command_breaks_and_what_entropy_shows_of_it():
    """The command and not the teacher's tokens, most of all before a number; the error has no entropy, words have."""
    says = " ".join(" ".join(sources("01")[name].split()) for name in ("cell-07", "where-text", "cell-10"))
    for part in (
        "teacher's four tokens alone do no harm",
        "about to write a number",
        "every one of them is about words",
    ):
        assert part in says
    easy = [p for suite in rl.SUITES if level_of(suite) == "easy" for p in rl.problems(suite, 5)]
    pair = rl.load_pair("student", "teacher")
    right = {}
    for place, silent in ((20, False), (30, False), (30, True)):
        rule = rl.CallAt({place: 4})
        traces = pair.decode(easy, call_rule=rule, write_call=not silent, progress=False)
        right[place, silent] = np.mean([bool(t.correct) for t in traces])
    assert right[30, False] < 0.5 < 0.7 < right[20, False], "before a number, and among words"
    assert right[30, True] > 0.9
    lost = pair.solve(easy[1], call_rule=rl.CallAt({30: 4}))
    behind = lost.answered[0].end + 4
    assert "".join(lost.pieces[behind - 4 : behind + 1]) == "76-2=", "a digit of 21 is lost"
    assert "76-21=" in easy[1].solution
    assert lost.entropies[behind] < 0.1
    doubts = [piece for piece, nats in zip(lost.pieces[behind:], lost.entropies[behind:]) if nats > 0.6]
    assert len(doubts) >= 5
    assert not any(c.isdigit() or c in "+-*/=" for piece in doubts for c in piece)


def test_02_says_that_the_warmed_up_student_asks_in_doubt_and_not_in_need():
    cells = sources("02")
    assert "several times as large where the student is unsure" in " ".join(cells["cell-41"].split())
    pair = rl.load_pair("warmup", "none")
    text, asked, doubt, hard = pair.student.text, [], [], []
    for problem in rl.problems("tiles", 6, world="lifelike"):
        ids = text.encode(problem.solution)
        prompt = pair.student.prompt_ids([{"role": "user", "content": problem.question}])
        with torch.no_grad():
            logits = pair.student.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        opening = text.encode(format_call(4))[0]
        asked += logits.softmax(-1)[:, opening].tolist()
        logits[:, opening] = -1e9
        doubt += (-(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)).tolist()
        hard += [piece.strip().isdigit() or piece in "+-*/=" for piece in text.pieces(ids)]
    chance, unsure, arithmetic = np.array(asked), np.array(doubt) > 0.6, np.array(hard)
    assert chance[unsure].mean() > 3 * chance[~unsure].mean()
    assert (unsure & ~arithmetic).sum() > (unsure & arithmetic).sum(), "most doubts are about words"


def test_00_says_what_a_rule_of_one_line_finds_and_what_it_costs():
    """It finds the hard step, and calls in answers that the student gets right alone."""
    says = " ".join(sources("00")["cell-27"].split())
    assert "a rule of one line finds that step" in says
    assert "calls at uncertain steps that the student would have got right" in says
    pair, rule = rl.load_pair("plain/warmup", "teacher"), rl.CallWhenUnsure(0.6, 8, most=3)
    hard = pair.decode(rl.problems("tiles", 6) + rl.problems("depot", 6), call_rule=rule, progress=False)
    assert sum(any(calls_at(t, {"product_2x2"})) for t in hard) >= 9
    medium = rl.problems("convoy", 8) + rl.problems("bakery", 8)
    helped, alone = (
        p.decode(medium, call_rule=r, progress=False)
        for p, r in ((pair, rule), (rl.load_pair("plain/student", "none"), None))
    )
    assert any(a.correct and h.answered for a, h in zip(alone, helped))


def test_02_says_what_a_warm_up_costs_and_that_it_does_not_teach_when():
    cells = {name: " ".join(text.split()) for name, text in sources("02").items()}
    made = json.loads((HOME / "relaylab" / "zoo" / "weights" / "warmup" / "training.json").read_text())
    assert "The warm-up has a cost" in cells["cell-29"]
    assert 0.85 < made["accuracy_after"] < made["accuracy_before"], "much of the loss is recovered"
    pair = rl.load_pair("warmup", "teacher")
    hard = [p for suite in ("tiles", "depot", "harvest") for p in rl.problems(suite, 8)]
    calling, forbidden = (
        pair.decode(hard, temperature=1.0, forbid_calls=banned, progress=False) for banned in (False, True)
    )
    right = [np.mean([bool(t.correct) for t in traces]) for traces in (calling, forbidden)]
    assert "gains next to nothing" in cells["cell-37"]
    assert right[0] - right[1] < 0.15
    assert "Hardly any call is at the hard step" in cells["cell-39"]
    hits = [hit for t in calling for hit in calls_at(t, HARD_KINDS)]
    assert len(hits) >= 8
    assert np.mean(hits) < 0.2
    first = [t.answered[0].start / len(t.completion_ids) for t in calling if t.answered]
    assert np.percentile(first, 20) < 0.25 < 0.5 < np.percentile(first, 80), "nearly anywhere"
    found = pair.solve(rl.problem("savings", 0), call_rule=rl.CallAt({20: 14}))
    call = found.answered[0]
    doubts = dict(zip(found.pieces[call.start + 1 : call.end], found.entropies[call.start + 1 : call.end]))
    assert "The measured entropy at the two digits is close to both" in cells["cell-44"]
    assert abs(doubts["1"] - 1.24) < 0.5, "3 to 20: ten of eighteen numbers begin with a 1"
    assert abs(doubts["4"] - np.log(10)) < 0.3
    assert max(nats for piece, nats in doubts.items() if not piece.isdigit()) < 0.1, "certain at the tags"


def test_02_says_which_warm_ups_give_dependent_groups():
    says = " ".join(sources("02")["sweep-read"].split())
    assert "6 to 11 %: the paper's long calls, the paper's loss, right responses alone, and a call in *every*" in says
    sweep = pd.read_csv(HOME / "notebooks" / "measured" / "warmup.csv").groupby("warm-up").mean(numeric_only=True)
    assert len(sweep) == 7
    costly = ["cross-entropy, the paper's", "a call in all"]
    four = [*costly, "k in 0..3, the paper's", "right responses alone"]
    assert sweep.loc[four, "dependent"].min() == pytest.approx(0.06, abs=0.005)
    assert sweep.loc[four, "dependent"].max() == pytest.approx(0.11, abs=0.005)
    assert sweep["dependent"].drop(four).max() < 0.02, "next to none"
    assert set(sweep["alone"].nsmallest(2).index) == set(costly)
    wanted = {sweep["accuracy"].idxmax(), sweep["alone"].idxmax(), sweep["dependent"].idxmax()}
    assert len(wanted) > 1, "no warm-up is the best in every column"


def run_cells(number: str, names: tuple[str, ...], changes: dict[str, str] | None = None) -> dict:
    """What a lesson's cells of these names leave behind, their figures not drawn; with ``changes`` of their text."""
    cells, scope = sources(number), dict[str, Any]()
    for name in names:
        source = cells[name]
        for old, new in {
            "setup()\n": "",
            "show_figure(guess.draw(fig))": "",
            "show_figure(fig)": "",
            **(changes or {}),
        }.items():
            source = source.replace(old, new)
        exec(source, scope)
        scope["setup"] = scope["show_figure"] = lambda *_: None
    return scope


def test_03_says_where_the_loss_pulls():
    scope = run_cells(
        "03",
        ("more-parameters", "cell-01", "cell-02", "cell-21", "cell-23", "cell-25", "cell-26", "cell-27", "cell-29"),
    )
    parts = scope["parts"]
    everything = parts.loc["of all tokens"]
    student, command, teacher = (ROLES[key].name for key in "sct")
    assert parts.loc["teacher masked", command] > 3 * everything[command], "far more than its share"
    assert parts.loc["teacher masked", teacher] == 0
    assert parts.loc["not masked", teacher] > 1.5 * everything[teacher], "well above their share"
    gained = scope["table"]["after"] - scope["table"]["before"]
    assert min(gained[student], gained[command]) > 0, "more likely, commands included"
    assert abs(gained[teacher]) > 0.01, "changed as well, although they had no gradient"


def test_04_says_what_each_reward_makes_of_six_attempts():
    scope = run_cells("04", ("cell-02", "cell-04", "cell-06"))
    paid, names = scope["paid"], [*scope["attempts"]]
    gains = {key: scope["advantages"](rewards) for key, rewards in paid.items()}
    short, long, padded, vain, alone, other = range(6)
    assert gains["dependent", "simple"][alone] > gains["dependent", "simple"][vain]
    assert set(np.argsort(gains["unsolvable", "simple"])[-2:]) == {alone, other}, "those without a call are best"
    assert not any(gains["unsolvable", "no exploration"])
    assert names[int(np.argmax(gains["unsolvable", "difficulty-aware"]))] == "2 long call"
    changed = {kind for kind in scope["made"] if paid[kind, "no bonus"] != paid[kind, "difficulty-aware"]}
    assert changed == {"solvable"}
    for kind in ("solvable", "dependent"):
        assert gains[kind, "diluted ratio"][padded] > gains[kind, "diluted ratio"][short]
        assert gains[kind, "difficulty-aware"][padded] <= gains[kind, "difficulty-aware"][short]
        assert paid[kind, "released code"][short] == paid[kind, "released code"][long], "help is free"
        assert paid[kind, "released code"][padded] < paid[kind, "released code"][short]


def test_04_says_that_the_batch_s_spread_keeps_a_call_in_vain_small():
    names = ("more-parameters", "cell-01", "cell-02", "cell-12", "batch-spread")
    scope = run_cells("04", names, {"batch_problems, split": "2, split"})
    assert len(scope["unsolvable"]) >= 2
    assert scope["by_group"] > 3 * scope["by_batch"] > 0


def test_05_says_how_the_teachers_rates_lie(tmp_path):
    """At both ends; those of convoy now and then between."""
    sampling = rl.load_teacher("teacher", temperature=1.0)
    problems = [p for suite in ("depot", "convoy", "galaxy") for p in rl.problems(suite, 8, split="train")]
    rates = pass_rates(sampling, problems, tmp_path / "rates.jsonl", samples=6, max_tokens=160, progress=False)
    passed = {s: [r.rate for r in rates if r.problem.suite == s] for s in ("depot", "convoy", "galaxy")}
    assert np.mean([rate >= 5 / 6 for rate in passed["depot"]]) > 0.8
    assert max(passed["galaxy"]) <= 1 / 6, "never what it cannot"
    between = {suite: sum(1 / 6 < rate < 5 / 6 for rate in some) for suite, some in passed.items()}
    assert between["convoy"] >= max(between["depot"], between["galaxy"])


def test_06_says_of_exploration_what_its_sweep_shows():
    with open(HOME / "notebooks" / "measured" / "rewards.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    schemes = ("difficulty-aware", "no exploration")
    calls = [sorted(float(row["calls"]) for row in rows if row["reward scheme"] == name) for name in schemes]
    pattern = r"makes ([\d.]+) to ([\d.]+) calls per answer.*?and ([\d.]+) to ([\d.]+) without"
    said = re.search(pattern, " ".join(sources("06")["surprises"].split()))
    assert said
    ends = [values[k] for values in calls for k in (0, -1)]
    assert [float(number) for number in said.groups()] == pytest.approx(ends, abs=0.0051)


def test_06_says_what_the_end_of_a_call_costs():
    """After 20 steps no end of a call is more accurate than another; twenty tokens cost three times as many as five."""
    says = " ".join(sources("06")["sweep-read"].split())
    assert "no end of a call is more accurate than another" in says
    assert "twenty tokens per call cost three times as many of the teacher's tokens as five" in says
    path = HOME / "notebooks" / "measured" / "fixed-n.csv"
    found = effects(*read_results(path, collect=["accuracy", "teacher_share"])).set_index(["result", "level"])
    others = found.loc["accuracy"].query("level != against")
    assert len(others) == 4
    assert not ((others["difference_low"] > 0) | (others["difference_high"] < 0)).any()
    shares = found.loc["teacher_share", "mean"]
    assert round(shares["20 tokens"] / shares["5 tokens"]) == 3


def test_06_says_what_the_filter_saves():
    says = " ".join(sources("06")["sweep-read"].split())
    assert "at 0.9 it takes half of the teacher's tokens that it takes without one, and solves more alone" in says
    path = HOME / "notebooks" / "measured" / "filter.csv"
    found = effects(*read_results(path, collect=["accuracy", "teacher_share", "alone"])).set_index(["result", "level"])
    share, alone, right = (found.loc[name] for name in ("teacher_share", "alone", "accuracy"))
    assert share.loc["0.9", "mean"] / share.loc["0.0", "mean"] == pytest.approx(0.5, abs=0.05)
    assert share.loc["0.9", "difference_high"] < 0 < alone.loc["0.9", "difference_low"]
    assert right.loc["0.9", "difference_low"] < 0 < right.loc["0.9", "difference_high"]


def test_09_says_who_matters_more_in_its_sweep():
    says = " ".join(sources("09")["swap-read"].split())
    assert "Both students have 65 % with the smaller teacher, and 71 to 72 % with the usual one" in says
    right = pd.read_csv(HOME / "notebooks" / "measured" / "teacher-swap.csv").groupby("teachers")["accuracy"].mean()
    assert {round(100 * right[f"{name} > smaller"]) for name in ("teacher", "smaller")} == {65}
    assert round(100 * right["smaller > teacher"]) == 71
    assert round(100 * right["teacher > teacher"]) == 72


def test_06_says_where_help_is_not_needed_and_where_it_is_in_vain():
    says = " ".join(" ".join(sources("06").values()).split())
    assert "In the first three suites the student needs no help. In *galaxy* the teacher cannot help" in says
    easy = [p for suite in ("savings", "shopping", "sharing") for p in rl.problems(suite, 6)]
    assert np.mean([bool(t.correct) for t in rl.load_pair("student", "none").decode(easy, progress=False)]) > 0.9
    beyond = rl.load_pair("relay").decode(rl.problems("galaxy", 8), progress=False)
    assert "Even with the filter the student calls for help that the teacher cannot give" in says
    assert sum(bool(t.answered) for t in beyond) >= 4
    assert not any(t.correct for t in beyond)


def test_07_says_what_practice_repairs_without_a_teacher():
    """A wrong fact in part, a wrong route and a hard product never."""
    says = " ".join(sources("07")["by-level-says"].split())
    assert "a relay keeps what it learned in this way when its teacher goes" in says
    problems = [p for suite in ("measures", "plots", "tiles") for p in rl.problems(suite, 8)]
    right = {}
    for name in ("student", "grpo", "relay"):
        traces = rl.load_pair(name, "none").decode(problems, progress=False, max_tokens=160)
        right[name] = [sum(bool(t.correct) for t in traces[k : k + 8]) for k in (0, 8, 16)]
    assert right["student"] == [0, 0, 0]
    assert min(right["grpo"][0], right["relay"][0]) >= 2, "facts"
    assert right["grpo"][1:] == right["relay"][1:] == [0, 0], "routes and hard products"


def test_11_says_where_students_of_one_recipe_agree():
    """On far more of the hard lines than of the others, of the lines in which one of them calls."""
    problems = [p for s in ("tiles", "depot", "measures", "convoy", "bakery") for p in rl.problems(s, 8)]
    lines = []
    for name in ("relay", "relay-seed2"):
        calls = calls_frame(rl.load_pair(name).decode(problems, progress=False)).query("status == 'answered'")
        lines.append(set(zip(calls["trace"], calls["line"])))
    either, both = lines[0] | lines[1], lines[0] & lines[1]
    hard = {(k, i) for k, p in enumerate(problems) for i, step in enumerate(p.steps) if step.trap or step.hard}
    agreed = [np.mean([line in both for line in some]) for some in (either & hard, either - hard)]
    assert agreed[0] > agreed[1] + 0.2


def test_12_and_13_say_how_sure_a_call_is_and_whom_it_visits():
    """Mostly sure to call; and answers with a call are less often right."""
    pair = rl.load_pair("relay", "teacher")
    problems = [p for suite in ALL_SUITES for p in rl.problems(suite, 5)]
    traces = pair.decode(problems, record=True, progress=False, max_tokens=160, max_calls=2)
    doubts = [t.entropies[call.start] for t in traces for call in t.answered]
    assert len(doubts) >= 15
    assert np.median(doubts) < 0.1, "most often it is sure to call"
    right = [np.mean([bool(t.correct) for t in traces if bool(t.answered) == called]) for called in (True, False)]
    assert right[0] < right[1]


def test_12_says_what_doubt_forecasts_and_what_the_number_does():
    """Doubt shows where it calls, but not at misconceptions, and a rule finds no route; n is as random as before."""
    cells = {name: " ".join(text.split()) for name, text in sources("12").items()}
    names = ("more-parameters", "cell-01", "cell-02", "cell-09", "cell-16", "cell-17", "cell-22", "cell-25", "cell-27")
    scope = run_cells("12", names, {"int = 12": "int = 8", "guess.draw(fig)": "fig"})
    assert "The first column wants to be high and the second low. The rule does badly in both" in cells["cell-18"]
    split = scope["split"]
    relay, rule = (split.loc[name] for name in ("trained, greedy", "rule, greedy"))
    assert relay["hard results"] > 0.8 > 0.3 > rule["hard results"]
    assert relay["all other results"] < rule["all other results"]
    assert "Where no misconception is, it is nearly perfect" in cells["cell-23"]
    assert scope["forecast"].loc["all others", "ranked"] > 0.95
    assert "At misconceptions there is hardly a doubt to forecast" in cells["cell-23"]
    assert scope["forecast"].loc["misconceptions", "mean"] < 0.15
    assert scope["forecast"].loc["all others", "mean"] > 1
    assert "A rule that waits for a doubt finds no route" in cells["cell-23"]
    assert scope["wide"].loc["rule, greedy", "route"] == 0
    assert scope["wide"].loc["trained, greedy", "route"] > 90
    assert "It hits some facts by chance, after a doubt about a word" in cells["cell-23"]
    by_rule = calls_frame([t for t in scope["answers"]["rule, greedy"] if t.problem["suite"] == "measures"])
    assert set(by_rule.query("line == 0")["place"]) <= {"line start", "words"}
    assert scope["wide"].loc["rule, greedy", "fact"] > 0

    assert "Training did not make it smaller" in cells["cell-26"]
    entropy = scope["asking"]["entropy (nats)"]
    assert entropy["trained, sampled"] > 0.9 * entropy["after the warm-up, sampled"] > 1
    assert "calls of this relay end with the line" in cells["length-text"]
    calls = calls_frame(scope["answers"]["trained, sampled"])
    assert (calls["outcome"] == "line").mean() > 0.9
    assert calls["delivered"].max() <= 20
    assert "the earlier a call begins in its line, the more tokens come" in cells["cell-28"]
    came = scope["table"]["delivered"]
    assert came["expression"] > came["before result"] + 1


def test_12_says_that_calls_are_a_staircase_and_one_token_too_few_loses():
    scope = {"rl": rl, "np": np, "pd": pd, "graded": graded, "Problem": rl.problem("tiles", 0).__class__}
    scope |= {"pair": rl.load_pair("relay", "teacher"), "warm": "warmup", "problems_a_suite": 6, "world": "lifelike"}
    cells = sources("12")
    exec(cells["cell-44"], scope)
    grid = scope["grid"]
    places = ("line 2", "line 4", "its result")
    enough = [next(n for n in grid.index if grid.loc[n, place] >= 60) for place in places]
    assert enough == sorted(set(enough), reverse=True), "the earlier, the longer"
    for place, first in zip(places, enough):
        assert all(grid.loc[n, place] == 0 for n in grid.index if n < first), "nothing below the stair"
    says = " ".join(cells["cell-46"].split())
    assert "right in front of the result *one* token too few loses everything" in says
    assert grid.loc[3, "its result"] == 0 < 60 <= grid.loc[4, "its result"]
    assert "all of its calls here are in line 4" in says
    calls = calls_frame(scope["pair"].decode(scope["ground"], progress=False))
    assert len(calls) >= 5
    assert set(calls["line"]) == {3}


def test_13_says_that_most_quotients_need_no_call():
    """A fork that gags the student says that twice as many do, since the untouched student can do them."""
    cells = {name: " ".join(text.split()) for name, text in sources("13").items()}
    assert "Most quotients of `convoy` need no help" in cells["surprises"]
    assert "the fork had gagged the student" in cells["surprises"]
    names = ("more-parameters", "cell-01", "cell-02", "cell-33", "cell-39", "cell-36")
    changes = {
        "for p in rl.problems(suite, problems": 'for p in rl.problems("convoy", problems',
        "in ALL_SUITES for p": "in (0,) for p",
        "[5, 10]": "[]",
        "show_figure(guess.draw(fig))": "",
        'show_figure(effects_figure(effects_by(by_kind, "kind"), by="kind"))': "",
        "for suite in ALL_SUITES for t": 'for suite in ["convoy"] for t',
    }
    scope = run_cells("13", names, changes)
    gagged, own = ((verdict == "needed").sum() for verdict in scope["twice"].values())
    assert len(scope["asked"]) >= 20
    assert gagged > 1.5 * own
    assert own < 0.5 * len(scope["asked"])
    assert "Most of these are quotients" in cells["cell-38"]
    assert set(scope["calls"]["kind"]) == {"quotient_4x2"}


def test_13_says_that_the_help_matters_and_not_the_command():
    """The placebo is no better than no call; and of the tokens in vain most are of products that nobody can do."""
    problems = [p for suite in ("tiles", "plots", "galaxy") for p in rl.problems(suite, 6)]
    pair = rl.load_pair("relay", "teacher")
    called = [t for t in pair.decode(problems, progress=False) if t.answered]
    effects = call_effects(called, pair.relay(), placebo=True, progress=False)
    wide = effects.pivot(index=["trace", "call"], columns="arm", values="accuracy")
    assert wide["with"].mean() > 0.5
    assert abs(wide["placebo"] - wide["alone"]).mean() < 0.1
    assert "both arms say the same, since both students cannot do them" in " ".join(sources("13")["cell-41"].split())
    assert wide["without"].mean() == 0


def test_14_says_which_doubts_are_harmless_and_which_errors_have_little():
    cells = sources("14")
    tree = ast.parse(cells["doubts"])
    scope = {"rl": rl, "re": re, "np": np}
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    exec(compile(tree, "doubts", "exec"), scope)
    student = rl.load_pair("student", "none")
    problems = [p for suite in ("measures", "plots") for p in rl.problems(suite, 8)]
    traces = student.decode(problems, progress=False, record=True, max_tokens=160)
    turns = [scope["wrong_turn"](t) for t in traces]
    assert np.isfinite(turns).sum() >= 12, "most first lines are wrong"
    assert np.nanmax(turns) < 0.6, "with less doubt than at a harmless word"
    doubtful = [piece for t in traces for piece, nats in zip(t.pieces, t.entropies) if nats > 0.6]
    assert np.mean([not any(c.isdigit() for c in piece) for piece in doubtful]) > 0.5, "words, not digits"


def test_08_says_that_the_relay_calls_where_it_has_nothing_to_lose():
    """No hard product and no route is right where it would have called; quotients are the exception."""
    cells = sources("08")
    assert "it has nothing to lose" in " ".join(cells["there-says"].split())
    relay = rl.load_pair("relay")
    alone = rl.Pair(relay.student, rl.NoTeacher(), relay.defaults)
    problems = [p for suite in ("tiles", "plots", "convoy") for p in rl.problems(suite, 8)]
    scope = {"re": re, "pd": pd, "calls_frame": calls_frame, "relays": ["relay"]}
    for name, pair in (("helped", relay), ("free", alone)):
        scope[name] = {"relay": pair.decode(problems, progress=False)}
    exec(cells["there"], scope)
    right = scope["by_place"]
    for kind in ("product_2x2", "route"):
        assert right.loc[kind, "would have called"].tolist() == [0, 8]
    assert (kind, "elsewhere") not in right.index
    lost = right["count"] - right["sum"]
    assert lost["quotient_4x2", "elsewhere"] >= 2
    assert right.loc[("quotient_4x2", "would have called"), "sum"] > 0, "the exception"


def test_09_says_who_is_worth_asking_and_that_it_is_not_noticed():
    says = " ".join(sources("09")["surprises"].split())
    pair, problems = rl.load_pair("relay", "none"), rl.problems("tiles", 8) + rl.problems("plots", 8)

    def traces(student: rl.Pair, teacher: str) -> list[rl.Trace]:
        return rl.Pair(student.student, rl.load_teacher(teacher), student.defaults).decode(problems, progress=False)

    answers = {name: traces(pair, name) for name in ("none", "student", "teacher-small", "teacher")}
    right = {name: sum(bool(t.correct) for t in some) for name, some in answers.items()}
    assert right["none"] == right["student"] == 0
    assert 3 <= right["teacher-small"] < right["teacher"]
    assert "it calls at the same first places, and for as many tokens" in says
    first = [[(t.answered[0].start, t.answered[0].requested) for t in answers[n]] for n in ("teacher", "student")]
    assert first[0] == first[1]
    assert "A teacher is worth nothing to a student that does not know when to call" in says
    warm = rl.load_pair("warmup", "none")
    assert sum(bool(t.correct) for t in traces(warm, "teacher")) <= 2


def test_06_and_09_quote_what_the_results_page_has():
    """Of each system the accuracy, and of two the share of the teacher's tokens."""
    page = (HOME / "docs" / "results.md").read_text("utf-8").partition("## Every system")[2]
    rows = dict(re.findall(r"^\| `([^`]+)` \| \d \| ([\d.]+) \(", page, re.M))
    nine, six = (" ".join(sources(n)["surprises"].split()) for n in ("09", "06"))
    said = ("right with calls forbidden", "with `student`", "with `teacher-small`", "with the teacher of the training")
    quoted = [re.search(rf"([\d.]+) % {words}", nine) for words in (*said, "with `teacher-large`")]
    swapped = [f"relay:teacher={name}" for name in ("student", "teacher-small", "teacher-large")]
    assert [found[1] for found in quoted if found] == [
        rows[m] for m in ("teacher-free", *swapped[:2], "relay", swapped[2])
    ]
    named = {name: rows[f"relay:student=ablations/{name}"] for name in ("no-bonus", "simple")}
    assert f"Accuracy is {rows['relay']} % with it and {named['no-bonus']} % without" in six
    assert f"It has {named['simple']} % at" in six


def test_10_says_what_other_words_and_a_space_cost():
    cells = sources("10")
    scope: dict = {}
    for name in ("more-parameters", "cell-01", "cell-02", "scripted", "cell-21"):
        exec(cells[name].replace("setup()", "").replace("int = 10", "int = 4"), scope)

    def right(teacher: str, level: str, say=lambda line: line) -> float:
        chosen = [p for p in scope["problems"] if p.level == level]
        return float(
            np.mean([bool(t.correct) for t in scope["solve_all"](scope["reads"](teacher, say), questions=chosen)])
        )

    own, space, other = (right(name, "hard", scope["styles"][name]) for name in scope["styles"])
    assert "worth less than half" in cells["surprises"]
    assert other / own < 0.6
    assert "costs this student nearly half of the help" in cells["surprises"]
    assert 0.25 <= own - space <= 0.6
    assert "saves a part of the problems that are beyond" in cells["surprises"]
    assert 0 < right("own words", "beyond") < 1


def test_15_says_what_a_share_of_the_tokens_leaves_out(tmp_path):
    says = " ".join(" ".join(sources("15").values()).split())
    relay, tiles = rl.load_pair("relay"), [rl.problem("tiles", i) for i in range(8)]
    assert "hand over one token costs as much reading as to hand over twenty" in says
    student = rl.load_pair("student")
    told = [student.solve(tiles[0], call_rule=rl.CallAt({20: n}), write_call=False) for n in (1, 20)]
    short, long = (hand_offs(trace)[0] for trace in told)
    assert (short.new, short.again) == (long.new, long.again)
    assert 1 == short.written < long.written

    assert "to write a few tokens, the teacher has to read everything before them" in says
    prices = Prices(student=ModelPrices(parameters=1.7e9), teacher=ModelPrices(parameters=8e9))
    table = rl.evaluate(["teacher", "speculative"], tiles, tmp_path, student="student", progress=False)
    found = {path.stem: list(rl.read_traces(path)) for _, path in trace_files(tmp_path)}
    used = {name: usage(traces) for name, traces in found.items()}
    used["relay"] = usage(relay.decode(tiles, progress=False))
    flops = {name: costs(frame, prices)["flops"].mean() for name, frame in used.items()}
    assert flops["relay"] / flops["teacher"] > 4 * used["relay"]["teacher_share"].mean()

    assert "It saves *time*, and not a FLOP" in says
    assert table.groupby("method")["correct"].sum().nunique() == 1
    drafted, alone = ({t.id: t for t in found[name]} for name in ("speculative", "teacher"))
    assert all(drafted[name].teacher_view == alone[name].teacher_view for name in alone)
    passes = sum(t.config["counts"]["teacher_passes"] for t in drafted.values())
    assert passes < sum(len(t.source) for t in alone.values()) / 1.5, "time"
    run = {name: (frame["teacher_new"] + frame["teacher_written"]).sum() for name, frame in used.items()}
    assert run["speculative"] >= run["teacher"], "and no FLOP"


def test_16_has_the_sizes_that_it_names():
    """In GB: Qwen3-8B in 4 bits, its embeddings and output matrix, the rest, and in bf16."""
    text, shape = "\n".join(sources("16").values()), QWEN3["8B"]
    assert f"{shape.cache:,} bytes for one token" in text
    for tokens, size in re.findall(r"([\d,]+) tokens is ([\d.]+) GB", text):
        assert float(size) == round(int(tokens.replace(",", "")) * shape.cache / GB, 1)
    whole, matrices = 2 * shape.parameters / GB, 2 * 2 * shape.vocab_size * shape.hidden_size / GB
    assert f"| {whole:.1f} GB |" in text
    teacher = next(term.size / GB for term in shipped()["qwen3/06b-24gb-4bit"].terms if term.what == "teacher")
    assert f"the 8B takes {teacher:.1f} GB, and {matrices:.1f} of these" in text
    assert f"36 layers, is {teacher - matrices:.1f}" in text


def test_17_has_the_gradients_of_the_real_run():
    study = (HOME / "docs" / "real-models.md").read_text("utf-8")
    table = study.partition("| gradient norm |")[2].partition("\n\n")[0]
    norms = sorted(line.split("|")[7].strip() for line in table.splitlines() if re.match(r"\| \d", line))
    assert len(norms) == 3
    text = "\n".join(sources("17").values())
    assert re.findall(r"gradient norms\s+from ([\d.]+)\s+to ([\d.]+)", text) == [(norms[0], norms[-1])] * 2
    assert "no reward, no gradient" not in text


def test_17_says_what_a_higher_rank_does():
    says = " ".join(sources("17")["rank-read"].split())
    assert "Rank 16 has the most right answers" in says
    assert "The two low ranks have hardly moved after 20 steps, and hardly call" in says
    assert "has lost two fifths of what it could do" in says
    ranks = pd.read_csv(HOME / "notebooks" / "measured" / "lora-rank.csv").groupby("lora_rank").mean(numeric_only=True)
    assert ranks["accuracy"].idxmax() == 16
    assert ranks.loc[[1, 4], "calls"].max() < 0.1 < ranks.loc[16, "calls"]
    assert ranks["alone"].idxmin() == 64
    assert ranks.loc[64, "alone"] / ranks.loc[[1, 4, 16], "alone"].mean() == pytest.approx(0.6, abs=0.05)


def test_17_shows_a_real_relay_whose_teacher_plans():
    cells = sources("17")
    number = int(re.findall(r"real\[(\d+)\]", cells["real"])[0])
    assert "The teacher writes words, not digits" in cells["real-says"]
    traces = list(rl.read_traces(HOME / "notebooks" / "measured" / "real_pair.jsonl"))
    shown = traces[number]
    first = "".join(shown.pieces[shown.answered[0].end :][: shown.answered[0].delivered])
    assert first.strip()
    assert not any(c.isdigit() for c in first)
    assert shown.correct
    assert len(traces) == 20
    assert all(call.forced for trace in traces for call in trace.answered), "a rule calls, not the student"


@pytest.mark.parametrize(
    ("number", "cell"),
    [("06", "surprises"), ("09", "surprises"), ("12", "cell-23"), ("12", "surprises"), ("14", "cell-13")],
)
def test_numbers_of_earlier_runs_stand_beside_their_commands(number, cell):
    """A lesson may quote a run that it does not do; then docs/ has the number, with the command."""
    quoted = re.findall(r"(?<![\d.])(?:\d\d\.\d(?!\d)|\d{1,2}\.\d+(?= %))", sources(number)[cell])
    docs = " ".join(
        (HOME / "docs" / f"{page}.md").read_text("utf-8") for page in ("results", "placement", "evaluation")
    )
    assert quoted
    assert not [n for n in quoted if not re.search(rf"(?<![\d.]){n}(?!\d)", docs)]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("banned", lambda tokens, turn: [b"<call" in turn[-5:] + token for token in tokens]),
        ("relative_positions", lambda t: [sum(map(len, t.pieces[: c.start])) / len(t.text) for c in t.answered]),
        ("enough", lambda call, digits, line: min(call.delivered, max(digits[line]) - call.end + 1)),
        ("fewest_calls", 4),
    ],
)
def test_answers_that_once_passed_are_wrong(name, answer):
    assert name in EXERCISES
    with pytest.raises(NotYet, match=rf"^{name}: "):
        check(name)(answer)


def test_14_says_which_number_decides_who_wins():
    """h: below a half a rule on doubts wins at 5 %, above it the relay; and one relay spends more than that."""
    says = " ".join(sources("14")["which-number"].split())
    assert "It is *h*." in says
    assert "That of the stubborn world spends 8 %, so it cannot win here" in says
    where = pd.read_csv(HOME / "notebooks" / "measured" / "map.csv")
    within = where[where["budget"] == 0.05].set_index("world")
    few, most = within[within["h"] < 0.5], within[within["h"] > 0.5]
    assert len(few) == len(most) == 2
    assert set(few["winner"]) <= {"entropy", "margin"}
    assert set(most["winner"]) == {"relay"}
    assert few["c"].max() > most["c"].max() > few["c"].min(), "c does not decide"
    assert "The cross is a real pretrained pair" in says
    (real,) = json.loads((HOME / "notebooks" / "measured" / "real_pair.json").read_text("utf-8")).values()
    assert real["harmless"]["low"] > 0.5


def test_11_says_that_the_place_of_a_call_comes_first():
    """Most calls stand in words at the start, and one of ten before a result; within 32 steps six of ten do."""
    text = " ".join(sources("11")["movie-found"].split())
    assert "one of ten right before a result. Within 32 steps it is six of ten" in text
    rolled, at_step = read_labelled(HOME / "notebooks" / "measured" / "rollouts")
    calls = calls_frame(rolled).query("status == 'answered'")
    places = calls.groupby(calls["trace"].map(lambda k: int(at_step[k])))["place"]
    before = places.agg(lambda found: (found == "before result").mean())
    assert places.agg(lambda found: (found == "words").mean())[0] > 0.5
    assert round(10 * before[0]) == 1
    assert round(10 * before[32]) == 6
    assert before.loc[32:].min() >= 0.5, "and it stays there"


@pytest.mark.parametrize(("number", "cell"), [("14", "cell-16"), ("15", "cell-04")])
def test_14_and_15_find_the_traces_of_any_relay(number, cell, tmp_path):
    """By the label of its method, of which a file's name is made: ``plain/relay`` has a slash."""
    source = sources(number)[cell]
    problems, label = [rl.problem("tiles", 0)], "relay:student=plain/relay"
    table = rl.evaluate(["student", label], problems, tmp_path, student="plain/student", progress=False)
    scope = {"rl": rl, "table": table, "out": tmp_path, "problems": problems}
    scope |= {"trace_files": trace_files, "trace_name": trace_name}
    exec(source[source.index("order = ") : source.index("hard = ")], scope)
    assert {name: [len(t.answered) > 0 for t in own] for name, own in scope["traces"].items()} == {
        "student": [False],
        label: [True],
    }


@pytest.mark.parametrize("recipe", [name for name in config_names() if name.startswith("qwen3/")])
def test_17_takes_any_recipe_at_any_number_of_steps(recipe, tmp_path):
    path = next((HOME / "notebooks").glob("17_*.ipynb"))
    source = sources("17")["cell-28"]
    defaults = {name: p.default for name, p in read_parameters(path).items()}
    for steps in (1, defaults["steps"]):
        scope = defaults | {"recipe": recipe, "steps": steps, "run": tmp_path, "warm": "warmup", "teacher": "teacher"}
        scope |= {"small": True, "served": False, "read_config": read_config, "TAUGHT": TAUGHT}
        exec(source[: source.index("file = ")], scope)
        config = make_config(**scope["settings"] | scope["ours"])
        assert (config.max_steps, config.steps_per_batch, config.prompts_per_batch) == (steps, 1, defaults["prompts"])
        assert config.tf32 is None, "small models, on any machine"


def test_06_takes_other_ablations_than_its_own():
    source = sources("06")["cell-26"]
    scope = {"Names": Names, "full": ["a"], "label": {"a": "relay", "b": "relay:student=b", "c": "relay:student=c"}}
    exec(source[: source.index("claims = ")], scope | (found := {"ablations": {"simple": "b", "mine": "c"}}), found)
    assert found["names"] == Names(relay="relay", simple="relay:student=b")


def test_04_trains_nothing_where_no_scheme_is_to_be_trained():
    said: list[str] = []
    scope = {"live": [], "pd": pd, "rl": rl, "Markdown": said.append}
    for cell in ("cell-28", "cell-29", "cell-30", "tempered", "ends"):
        exec(sources("04")[cell], scope)
    assert (scope["runs"], scope["last"], said) == ({}, {}, ["Nothing was trained."])
