"""How each embedded model is made, by name: what ``relaylab zoo train`` runs.

``student`` and the teachers are trained from scratch, ``warm`` is the student after stage 1, and every file of
``configs/embedded`` is a run of stage 2 whose adapter has its name. ``warm-six`` is not shipped: a warm-up without
three of the suites, which forgets them (docs/results.md).
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from relaylab.tasks.suites import SUITES, mixture, problems
from relaylab.zoo.pretrain import RECIPES, pretrain, train_tokenizer

# Why all weights: the student has never seen the tokens of the tags, which stand at log-probability -30, and an adapter
# of the layers can only lift them together with every other token that it never saw. Why correct responses alone:
# nearly half of the mixture is beyond this student; learning its own random digits by heart costs it what it can do.
# Why n in 4..24: answers have 75 tokens, and d * 10**k knows no number between 10 and 20 (docs/training.md).
WARMUP = dict(
    problems=6000, data_seed=3, temperature=0.7, keep_correct=True, numbers=list(range(4, 25)),
    steps=700, learning_rate=6e-3, seed=0,
)  # fmt: skip
# Why sure: without it the warm-up costs the student most of the products that it knew and sums of large numbers behind
# them, and leaves it nearly unable to read a number behind a tag (docs/training.md). Wrong responses may then stay.
SURE = WARMUP | dict(problems=24000, keep_correct=False, sure=0.5, steps=2000)
SIX = ("savings", "shopping", "bakery", "tiles", "depot", "galaxy")  # of each level some, and no quotients
WARMUPS = {"warm": WARMUP, "warm-sure": SURE, "warm-six": WARMUP | {"suites": list(SIX)}}
CONFIGS = Path(__file__).parents[1] / "training" / "configs" / "embedded"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def recipes() -> list[str]:
    """The names of all embedded models that can be made."""
    return [*RECIPES, *WARMUPS, *sorted(p.stem for p in CONFIGS.glob("*.yaml"))]


def make(name: str, out: Path, *, device: str = "cpu", steps: int | None = None) -> None:
    """Make the embedded model ``name`` in the folder ``out``; ``steps`` shortens the recipe for a try.

    Raises ValueError for a name without a recipe.
    """
    if name in RECIPES:
        recipe = replace(RECIPES[name], steps=steps or RECIPES[name].steps)
        pretrain(recipe, train_tokenizer(recipe.vocabulary), out, device=device)
    elif name in WARMUPS:
        _warm(out, device, WARMUPS[name] | ({"steps": steps} if steps else {}))
    elif name in recipes():
        _adapter(name, out, device, _shortened(name, steps) if steps else {})
    else:
        raise ValueError(f"no recipe for {name!r}; there are {', '.join(recipes())}")


def _warm(out: Path, device: str, recipe: dict) -> None:
    from relaylab.training.warmup import warmup  # TRL takes seconds to import

    started = time.monotonic()
    options = dict(recipe)
    stream = mixture(seed=options.pop("data_seed"), suites=tuple(options.pop("suites", SUITES)))
    chosen = list(islice(stream, options.pop("problems")))
    check = [p for s in SUITES[:4] for p in problems(s, 100)]  # those that the student solves alone
    done = warmup("student", chosen, out, check=check, full=True, max_tokens=160, device=device, **options)
    print(done)
    shutil.rmtree(out / "run", ignore_errors=True)
    told = dict(rows=done.rows, accuracy_before=done.before, accuracy_after=done.after, calls=done.calls)
    _record(out, dict(recipe=recipe, **told, seconds=round(time.monotonic() - started), device=device))


def _shortened(name: str, steps: int) -> dict:
    """What gives the first ``steps`` steps of a run of stage 2."""
    from relaylab.training.run import read_config

    lead = []
    for stage in read_config(f"embedded/{name}").get("lead", []):
        if left := steps - sum(part["steps"] for part in lead):
            lead.append(stage | {"steps": min(stage["steps"], left)})
    return {"steps": steps, "lead": lead}


def _adapter(name: str, out: Path, device: str, options: dict) -> None:
    from relaylab.training.run import read_config, train
    from relaylab.training.run_dir import read_metrics

    started = time.monotonic()
    student = train(f"embedded/{name}", out=out / "run", device=device, **options)
    for file in ADAPTER_FILES:
        shutil.copy(student / file, out / file)
    last = read_metrics(out / "run").tail(10)[["reward", "accuracy", "call_ratio", "calls"]].mean()
    told = dict(last_10_steps={k: round(v, 4) for k, v in last.items()})
    recipe = {"seed": 0} | read_config(f"embedded/{name}") | options
    _record(out, dict(recipe=recipe, **told, seconds=round(time.monotonic() - started), device=device))


def _record(out: Path, record: dict) -> None:
    import torch

    (out / "training.json").write_text(json.dumps(record | {"threads": torch.get_num_threads()}, indent=1) + "\n")
