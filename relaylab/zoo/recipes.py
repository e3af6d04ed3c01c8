"""How each embedded model is made, by name: what ``relaylab zoo train`` runs.

``student`` and the teachers are trained from scratch and trained on into the worlds. ``warm`` and ``lifelike/warmup``
are students after stage 1. Each run of ``configs/ablations.yaml`` is a run of stage 2 whose adapter has its name.
``warm-six`` is not shipped: a warm-up without three of the suites, which forgets them (docs/results.md).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from relaylab.engine.load import load_tokenizer, resolve
from relaylab.files import bind_folder, check_replaceable, replaced_folder, write_json
from relaylab.tasks.suites import ALL_SUITES, SUITES, mixture, problems
from relaylab.training.configs import config_names, read_config
from relaylab.zoo.pretrain import RECIPES, Recipe, pretrain, train_tokenizer

RECORD = "training.json"  # in each embedded model's folder: how it was made
# Why all weights: the student has never seen the tokens of the tags, which stand at log-probability -30. An adapter of
# the layers can only lift them together with every other token that it never saw. Why correct responses alone: nearly
# half of the mixture is beyond this student, and learning its own random digits by heart costs it what it can do. Why n
# in 4..24: answers have 75 tokens, and d * 10**k knows no number between 10 and 20 (docs/trials.md).
WARMUP: dict[str, Any] = dict(
    loss="cross_entropy", num_problems=6000, data_seed=3, temperature=0.7, keep_correct=True,
    numbers=list(range(4, 25)), max_steps=700, learning_rate=6e-3, seed=0,
)  # fmt: skip
# Why min_token_prob: without it the warm-up costs the student most of the products that it knew and the sums of large
# numbers that follow them. It can hardly read a number after a tag then (docs/trials.md). Wrong responses may stay.
SURE = WARMUP | dict(num_problems=24000, keep_correct=False, min_token_prob=0.5, max_steps=2000)
SIX = ("savings", "shopping", "bakery", "tiles", "depot", "galaxy")  # of each level some, and no quotients
# Self-distillation forgets little, so every response is learned from, right or wrong, as it was sampled. Half of the
# commands stand where the student is unsure: from there GRPO finds the token that needs help. Why whole words: a call
# behind the first digit of a product comes too late when that digit is wrong (docs/trials.md).
DISTILLED: dict[str, Any] = dict(
    student="lifelike/student", teacher="lifelike/teacher", suites=list(ALL_SUITES), num_problems=6000, data_seed=3,
    numbers=list(range(3, 21)), uniform=0.5, max_steps=1500, learning_rate=3e-3, seed=0,
)  # fmt: skip
WARMUPS = {
    "warm": WARMUP,
    "warm-sure": SURE,
    "warm-six": WARMUP | {"suites": list(SIX)},
    "lifelike/warmup": DISTILLED | {"whole_words": True},
    "lifelike/warmup-cross-entropy": DISTILLED | {"loss": "cross_entropy"},
    **{f"{world}/warmup": DISTILLED | {"student": f"{world}/student"} for world in ("plain", "wordy", "stubborn")},
}


def recipes() -> list[str]:
    """The names of all embedded models that can be made."""
    runs = [name.removeprefix("embedded/") for name in config_names() if name.startswith("embedded/")]
    return [*RECIPES, *WARMUPS, *runs]


def make(name: str, out: str | Path, *, device: str = "cpu", steps: int | None = None) -> None:
    """Make an embedded model anew. Interrupted, the same call goes on from the folder ``OUT.work``.

    Args:
        name: one of ``recipes()``.
        out: its folder; a model that was made so before is replaced once the new one is whole.
        device: ``cpu`` or ``cuda``.
        steps: fewer steps than the recipe's, for a try.

    Raises:
        ValueError: for a name without a recipe, and where ``out`` holds something else.
    """
    if name not in recipes():
        raise ValueError(f"no recipe for {name!r}; there are {', '.join(recipes())}")
    out, started = Path(out), time.monotonic()
    check_replaceable(out, marker=RECORD)
    if name in RECIPES:
        recipe, train, model = asdict(RECIPES[name]) | ({"steps": steps} if steps else {}), _pretrained, "model"
    elif name in WARMUPS:
        recipe, train, model = WARMUPS[name] | ({"max_steps": steps} if steps else {}), _warmed, "warmed"
    else:
        recipe = {"seed": 0} | read_config(f"embedded/{name}") | (_shortened(name, steps) if steps else {})
        train, model = _trained, "run/student"
    work = bind_folder(out.with_name(f"{out.name}.work"), recipe)
    results = train(work, device, recipe)
    made = {"seconds": round(time.monotonic() - started), "device": device, "threads": torch.get_num_threads()}
    record = {"recipe": recipe} | made | results
    with replaced_folder(out, marker=RECORD) as folder:
        shutil.copytree(work / model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("warmup.json"))
        write_json(folder / RECORD, record)
    shutil.rmtree(work)


def _pretrained(work: Path, device: str, recipe: dict[str, Any]) -> dict[str, Any]:
    base = resolve(recipe["base"]) if recipe["base"] else None
    tokenizer: Any = load_tokenizer(base) if base else train_tokenizer(recipe["vocabulary"])
    return pretrain(Recipe(**recipe), tokenizer, work, base=base, device=device)


def _warmed(work: Path, device: str, recipe: dict[str, Any]) -> dict[str, Any]:
    from relaylab.training.warmup import warmup  # TRL takes seconds to import

    options = dict(recipe)
    student = options.pop("student", "student")
    stream = mixture(seed=options.pop("data_seed"), suites=tuple(options.pop("suites", SUITES)))
    chosen = list(islice(stream, options.pop("num_problems")))
    check = [p for s in SUITES[:4] for p in problems(s, 100)]  # those that the student solves alone
    warmed = warmup(student, chosen, work / "warmed", check=check, full=True, max_tokens=160, device=device, **options)
    print(warmed)
    return dict(rows=warmed.rows, accuracy_before=warmed.before, accuracy_after=warmed.after, calls=warmed.calls)


def _shortened(name: str, steps: int) -> dict[str, Any]:
    """What gives the first ``steps`` steps of a run of stage 2."""
    stages: list[dict[str, Any]] = []
    for stage in read_config(f"embedded/{name}").get("call_curriculum", []):
        if left := steps - sum(s["steps"] for s in stages):
            stages.append(stage | {"steps": min(stage["steps"], left)})
    return {"max_steps": steps} | ({"call_curriculum": stages} if stages else {})


def _trained(work: Path, device: str, recipe: dict[str, Any]) -> dict[str, Any]:
    from relaylab.training.grpo import train
    from relaylab.training.run_dir import read_metrics

    train(output_dir=work / "run", use_cpu=device == "cpu", **recipe)
    last = read_metrics(work / "run").tail(10)[["reward", "accuracy", "call_ratio", "calls"]].mean()
    return {"last_10_steps": {k: round(float(v), 4) for k, v in last.items()}}
