"""How each embedded model is made, by name: what ``relaylab zoo train`` runs.

The bases are trained from scratch and are not shipped. Students and teachers are trained on from them, into a world.
A ``warmup`` is a student after stage 1. Each run of ``configs/ablations.yaml`` is a run of stage 2 whose adapter has
its name.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from relaylab.engine.load import load_tokenizer
from relaylab.files import bind_folder, check_replaceable, replaced_folder, write_json
from relaylab.tasks.suites import ALL_SUITES, SUITES, mixture, problems
from relaylab.training.configs import config_names, read_config
from relaylab.zoo.pretrain import RECIPES, Recipe, pretrain, train_tokenizer

RECORD = "training.json"  # in each embedded model's folder: how it was made
# Self-distillation forgets little, so every response is learned from, right or wrong, as it was sampled. Half of the
# commands stand where the student is unsure: from there GRPO finds the token that needs help. Why whole words: a call
# behind the first digit of a product comes too late when that digit is wrong (docs/trials.md).
DISTILLED: dict[str, Any] = dict(
    student="student", teacher="teacher", suites=list(ALL_SUITES), num_problems=6000, data_seed=3,
    numbers=list(range(3, 21)), uniform=0.5, max_steps=1500, learning_rate=3e-3, seed=0,
)  # fmt: skip
WARMUPS = {
    "warmup": DISTILLED | {"whole_words": True},
    "ablations/warmup-cross-entropy": DISTILLED | {"loss": "cross_entropy"},
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
        out: its folder; a model that was made so before is replaced once the new one is whole. What a model is trained
            on from is made beside it first, such as ``base-student``, unless it is there.
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
        recipe, model = asdict(RECIPES[name]) | ({"steps": steps} if steps else {}), "model"
        train = partial(_pretrained, steps=steps)
    elif name in WARMUPS:
        recipe, train, model = WARMUPS[name] | ({"max_steps": steps} if steps else {}), _warmed, "warmed"
    else:
        recipe = {"seed": 0} | read_config(f"embedded/{name}") | ({"max_steps": steps} if steps else {})
        train, model = _trained, "run/student"
    work = bind_folder(out.with_name(f"{out.name}.work"), recipe)
    results = train(work, device, recipe)
    made = {"seconds": round(time.monotonic() - started), "device": device, "threads": torch.get_num_threads()}
    record = {"recipe": recipe} | made | results
    with replaced_folder(out, marker=RECORD) as folder:
        shutil.copytree(work / model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("warmup.json"))
        write_json(folder / RECORD, record)
    shutil.rmtree(work)


def _pretrained(work: Path, device: str, recipe: dict[str, Any], *, steps: int | None) -> dict[str, Any]:
    base = None
    if recipe["base"]:  # beside the model, as several are trained on from it; a try makes a short one of its own
        base = work / "base" if steps else work.with_name(recipe["base"].replace("/", "-"))
        if not base.exists():
            make(recipe["base"], base, device=device, steps=steps)
    tokenizer: Any = load_tokenizer(base) if base else train_tokenizer(recipe["vocabulary"])
    return pretrain(Recipe(**recipe), tokenizer, work, base=base, device=device)


def _warmed(work: Path, device: str, recipe: dict[str, Any]) -> dict[str, Any]:
    from relaylab.training.warmup import warmup  # TRL takes seconds to import

    options = dict(recipe)
    student = options.pop("student")
    stream = mixture(seed=options.pop("data_seed"), suites=tuple(options.pop("suites")))
    chosen = list(islice(stream, options.pop("num_problems")))
    check = [p for s in SUITES[:4] for p in problems(s, 100)]  # those that the student solves alone
    warmed = warmup(student, chosen, work / "warmed", check=check, full=True, max_tokens=160, device=device, **options)
    print(warmed)
    return dict(rows=warmed.rows, accuracy_before=warmed.before, accuracy_after=warmed.after, calls=warmed.calls)


def _trained(work: Path, device: str, recipe: dict[str, Any]) -> dict[str, Any]:
    from relaylab.training.grpo import train
    from relaylab.training.run_dir import read_metrics

    train(output_dir=work / "run", use_cpu=device == "cpu", **recipe)
    last = read_metrics(work / "run").tail(10)[["reward", "accuracy", "call_ratio", "calls"]].mean()
    return {"last_10_steps": {k: round(float(v), 4) for k, v in last.items()}}
