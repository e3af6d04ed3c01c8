"""How each embedded model is made, by name: what ``relaylab zoo train`` runs."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from relaylab.models.zoo import load_engine
from relaylab.tasks.suites import mixture
from relaylab.training.pretrain import RECIPES, pretrain, train_tokenizer

WARMUP = dict(problems=2700, temperature=0.7, exponents=[0], steps=400, learning_rate=5e-3, seed=3)


def make(name: str, out: Path, *, device: str = "cpu", steps: int | None = None) -> None:
    """Make the embedded model ``name`` in the folder ``out``: ``student`` and ``teacher`` from scratch, ``warm`` from
    the embedded student. ``steps`` shortens the recipe for a try."""
    if name in RECIPES:
        recipe = replace(RECIPES[name], steps=steps or RECIPES[name].steps)
        pretrain(recipe, train_tokenizer(recipe.vocabulary), out, device=device)
    elif name == "warm":
        _warm(out, device, steps or WARMUP["steps"])
    else:
        raise ValueError(f"no recipe for {name!r}; there are {', '.join([*RECIPES, 'warm'])}")


def _warm(out: Path, device: str, steps: int) -> None:
    from relaylab.training.warmup import warmup, warmup_data  # TRL takes seconds to import

    started = time.monotonic()
    options = WARMUP | {"steps": steps}
    seed = options["seed"]
    student = load_engine("student", device=device)
    problems = list(islice(mixture(seed=seed), options["problems"]))
    data = warmup_data(
        student,
        problems,
        temperature=options["temperature"],
        exponents=options["exponents"],
        seed=seed,
        max_tokens=160,
    )
    warmup(student, data, out, steps=steps, learning_rate=options["learning_rate"], seed=seed)
    record = dict(recipe=options, rows=len(data), seconds=round(time.monotonic() - started), device=device)
    (out / "training.json").write_text(json.dumps(record, indent=1))
