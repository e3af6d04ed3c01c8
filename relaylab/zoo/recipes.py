"""How each embedded model is made, by name: what ``relaylab zoo train`` runs.

The bases are trained from scratch and are not shipped. Students and teachers are trained on from them, into a world.
A ``warmup`` is a student after stage 1. Each run of ``configs/ablations.yaml`` is a run of stage 2 whose adapter has
its name.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from relaylab.engine.load import embedded, load_tokenizer
from relaylab.files import bind_folder, check_replaceable, read_json, replaced_folder, write_json
from relaylab.tasks.suites import ALL_SUITES, SUITES, mixture, problems
from relaylab.training.configs import config_names, read_config
from relaylab.zoo.pretrain import RECIPES, Recipe, pretrain, train_tokenizer

RECORD = "training.json"  # in each embedded model's folder: how it was made
EXACT = ("warmup",)  # kept in float32: the relays were trained from it; all others are stored in half the space
# Self-distillation forgets little, so every response is learned from, right or wrong, as it was sampled. Half of the
# commands stand where the student is unsure: from there GRPO finds the token that needs help. Why whole words: a call
# behind the first digit of a product comes too late when that digit is wrong (docs/trials.md).
DISTILLED: dict[str, Any] = dict(
    student="student", teacher="teacher", suites=list(ALL_SUITES), num_problems=6000, data_seed=3,
    numbers=list(range(3, 21)), uniform=0.5, whole_words=True, max_steps=1500, learning_rate=3e-3, seed=0,
)  # fmt: skip
WARMUPS = {
    "warmup": DISTILLED,
    "ablations/warmup-cross-entropy": DISTILLED | {"loss": "cross_entropy"},
    **{f"{world}/warmup": DISTILLED | {"student": f"{world}/student"} for world in ("plain", "wordy", "stubborn")},
}
DIALS = re.compile("(h[0-3]c[0-4])/(student|warmup|relay|grpo)")  # of a world that is named by its dials


def recipes() -> list[str]:
    """The names of all embedded models that can be made. Those of other worlds, as ``h2c1/relay``, can be made, too."""
    runs = [name.removeprefix("embedded/") for name in config_names() if name.startswith("embedded/")]
    return [*RECIPES, *WARMUPS, *runs]


def _recipe(name: str) -> dict[str, Any]:
    if match := DIALS.fullmatch(name):
        world, kind = match.groups()
        if kind == "student":
            return asdict(replace(RECIPES[kind], worlds=(world,)))
        recipe, source = _recipe(kind), "warmup" if kind == "relay" else "student"
        return recipe | {"student": f"{world}/{source}"}
    if name in RECIPES:
        return asdict(RECIPES[name])
    if name in WARMUPS:
        return WARMUPS[name]
    if name in recipes():
        return {"seed": 0} | read_config(f"embedded/{name}")
    raise ValueError(f"no recipe for {name!r}; there are {', '.join(recipes())}, and h0c0/student to h3c4/grpo")


def make(name: str, out: str | Path, *, device: str = "cpu", steps: int | None = None) -> None:
    """Make an embedded model anew. Interrupted, the same call goes on from the folder ``OUT.work``.

    Args:
        name: one of ``recipes()``, or a model of a world by its dials (``find_world``), as ``h2c1/relay``.
        out: its folder; a model that was made so before is replaced once the new one is whole. What a model is trained
            on from and is not embedded is made beside it first, such as ``base-student``, unless it is there.
        device: ``cpu`` or ``cuda``.
        steps: fewer steps than the recipe's, for a try.

    Raises:
        ValueError: for a name without a recipe, and where ``out`` holds something else. Also where the model beside it,
            which it is trained on from, was made in fewer steps.
    """
    recipe, out, started = _recipe(name), Path(out), time.monotonic()
    short: dict[str, Any]
    check_replaceable(out, marker=RECORD)
    if "width" in recipe:
        short, train, model = {"steps": steps}, partial(_pretrained, steps=steps), "model"
    elif "data_seed" in recipe:
        short, train, model = {"max_steps": steps, "num_problems": 32 * (steps or 0)}, _warmed, "warmed"
    else:
        short, train, model = {"max_steps": steps, "num_problems": 16 * (steps or 0)}, _trained, "run/student"
    recipe = recipe | (short if steps else {})
    work = bind_folder(out.with_name(f"{out.name}.work"), recipe)
    # 1) What it is trained on from: an embedded model, or one beside it. A try makes a short one of its own.
    base: str | None = recipe.get("base") or recipe.get("student")
    if base and base not in embedded():
        source = work / "base" if steps else out.with_name(base.replace("/", "-"))
        if not source.exists():
            make(base, source, device=device, steps=steps)
        elif not steps:
            _check_whole(base, source)
        base = str(source)
    # 2) Train it.
    results = train(work, device, recipe, base)
    # 3) Keep it with its record, in half the space.
    made = {"seconds": round(time.monotonic() - started), "device": device, "threads": torch.get_num_threads()}
    with replaced_folder(out, marker=RECORD) as folder:
        shutil.copytree(work / model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("warmup.json"))
        if name not in EXACT:
            _halve(folder)
        write_json(folder / RECORD, {"recipe": recipe} | made | results)
    shutil.rmtree(work)


def _check_whole(name: str, folder: Path) -> None:
    """Refuse a model that was made in other steps than its recipe has."""
    if not (folder / RECORD).exists():
        raise ValueError(f"{folder} is no model of `relaylab zoo train`; choose another place for the new model")
    recipe, made = _recipe(name), read_json(folder / RECORD)["recipe"]
    steps = "steps" if "width" in recipe else "max_steps"
    if made.get(steps) != recipe[steps]:
        told = f"{folder} was made in {made.get(steps)} steps, and the recipe of {name} has {recipe[steps]}"
        raise ValueError(f"{told}; remove it, and it is made again, or choose another place for the new model")


def _halve(folder: Path) -> None:
    """Round the weights of a model or an adapter to bfloat16."""
    for file in folder.glob("*.safetensors"):
        save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    if (config := folder / "config.json").exists():
        write_json(config, read_json(config) | {"dtype": "bfloat16"})


def _pretrained(
    work: Path, device: str, recipe: dict[str, Any], base: str | None, *, steps: int | None
) -> dict[str, Any]:
    tokenizer: Any = load_tokenizer(base) if base else train_tokenizer(recipe["vocabulary"])
    return pretrain(Recipe(**recipe), tokenizer, work, base=base, device=device)


def _warmed(work: Path, device: str, recipe: dict[str, Any], student: str | None) -> dict[str, Any]:
    from relaylab.training.warmup import warmup  # TRL takes seconds to import

    options: dict[str, Any] = recipe | {"student": student}
    stream = mixture(seed=options.pop("data_seed"), suites=tuple(options.pop("suites")))
    chosen = list(islice(stream, options.pop("num_problems")))
    check = [p for s in SUITES[:4] for p in problems(s, 100)]  # those that the student solves alone
    warmed = warmup(
        options.pop("student"),
        chosen,
        work / "warmed",
        check=check,
        full=True,
        max_tokens=160,
        device=device,
        **options,
    )
    print(warmed)
    return dict(rows=warmed.rows, accuracy_before=warmed.before, accuracy_after=warmed.after, calls=warmed.calls)


def _trained(work: Path, device: str, recipe: dict[str, Any], student: str | None) -> dict[str, Any]:
    from relaylab.training.grpo import train
    from relaylab.training.run_dir import read_metrics

    train(output_dir=work / "run", use_cpu=device == "cpu", **recipe | dict[str, Any](student=student))
    last = read_metrics(work / "run").tail(10)[["reward", "accuracy", "call_ratio", "calls"]].mean()
    return {"last_10_steps": {k: round(float(v), 4) for k, v in last.items()}}
