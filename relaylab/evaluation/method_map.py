"""The map: which way of asking for help wins in which world, at how many teacher tokens.

A world lies on the map by what was measured of its student: h, how much of its uncertainty is harmless, and c, how many
of its errors are confident (``interventions``). In each world every trigger is calibrated on training problems, and the
students of that world are evaluated beside it on test problems. Within a budget of teacher tokens the most accurate
method wins. Methods that the paired bootstrap cannot tell from it are named as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relaylab.defaults import TEACHER
from relaylab.engine.load import embedded, fingerprint_weights, load_engine
from relaylab.evaluation.calibrate import BUDGETS, calibrate
from relaylab.evaluation.evaluate import evaluate
from relaylab.evaluation.interventions import dials
from relaylab.evaluation.stats import columns, paired, summary
from relaylab.evaluation.table import dial_columns
from relaylab.files import check_config, plain, read_json, write_json
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import Pair
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import NoTeacher
from relaylab.tasks.suites import TAUGHT, Problem, problems
from relaylab.tasks.worlds import WORLDS

QUICK: dict[str, Any] = dict(triggers=("entropy", "line", "probe"), lengths=(3, 8), quantiles=(0.8, 0.9, 0.95, 0.98))


def drawn(count: int, **options: Any) -> list[Problem]:
    """``count`` problems of every suite that the teacher can do."""
    return [p for suite in TAUGHT for p in problems(suite, count, **options)]


def named(world: str, model: str) -> str:
    """The name of an embedded model of a world.

    >>> named("lifelike", "student"), named("plain", "student")
    ('student', 'plain/student')
    """
    return model if world == "lifelike" else f"{world}/{model}"


def students(world: str, kind: str, models: Path | None = None) -> list[str]:
    """The students of a world that were trained as ``kind`` (``student``, ``relay``, ``grpo``), one for each seed.

    Args:
        world: its name, or its dials, as ``h2c1``.
        kind: see above.
        models: a folder of models that ``relaylab zoo train`` made, as ``models/h2c1-relay``; without it, the embedded.

    >>> students("lifelike", "relay")
    ['relay', 'relay-seed2', 'relay-seed3']
    """
    own = named(world, kind)
    if models is None:
        return [name for name in embedded() if name == own or name.startswith(f"{own}-seed")]
    folder = own.replace("/", "-")
    made = [*models.glob(f"{folder}/training.json"), *models.glob(f"{folder}-seed*/training.json")]
    return sorted(str(file.parent) for file in made)


def worlds(models: Path | None = None) -> list[str]:
    """The worlds that have a student: those of ``WORLDS``, and in a folder those by dials, too."""
    dials = sorted({p.name.partition("-")[0] for p in models.glob("h?c?-student")}) if models else []
    return [world for world in [*WORLDS, *dials] if students(world, "student", models)]


def pair_of(world: str, models: Path | None = None) -> tuple[str, str]:
    """The untrained student of a world, and its teacher.

    Raises:
        ValueError: where this world has no student.

    >>> pair_of("lifelike")
    ('student', 'teacher')
    """
    if not (found := students(world, "student", models)):
        there = ", ".join(worlds(models)) or "none"
        raise ValueError(
            f"no student of the world {world!r} is {f'in {models}' if models else 'embedded'}; of: {there}"
        )
    return found[0], TEACHER


def measure_dials(world: str, out: str | Path, *, per_suite: int = 20, models: Path | None = None) -> dict[str, Any]:
    """h, c and the AUROCs of a world's untrained student, kept in ``out/dials.json``.

    Args:
        world: of a student.
        out: the folder of the world.
        per_suite: problems of each suite.
        models: as in ``students``.

    Returns:
        The fields of ``Dials``, and of its intervals theirs.

    Raises:
        ValueError: for an unknown world, and where ``out`` is of other models or problems.
    """
    path, (student, teacher) = Path(out) / "dials.json", pair_of(world, models)
    weights = [fingerprint_weights(student), fingerprint_weights(teacher)]
    config = plain({"student": student, "teacher": teacher, "weights": weights, "per_suite": per_suite})
    if path.exists():
        record = read_json(path)
        check_config(path, record["config"], config)
        return record["dials"]
    relay = Relay(load_engine(student), LocalTeacher(load_engine(teacher)), max_tokens=160)
    alone = Pair(relay.student, NoTeacher()).decode(
        drawn(per_suite, start=5000), temperature=0.0, max_tokens=160, batch_size=128, record=True
    )
    found = asdict(dials(alone, relay))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"config": config, "dials": found})
    return found


def measure_world(
    world: str,
    out: str | Path,
    *,
    count: int = 200,
    per_suite: int = 20,
    quick: bool = False,
    models: Path | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All methods of one world on the same test problems. Interrupted, the same call goes on.

    Args:
        world: of a student.
        out: the folder of the world.
        count: test problems of each suite.
        per_suite: training problems of each suite to calibrate on, and problems for h and c.
        quick: calibrate three triggers with few candidates.
        models: as in ``students``.

    Returns:
        The table of the evaluation, and one row for each trigger and budget (``calibrate``).
    """
    out, (student, teacher) = Path(out), pair_of(world, models)
    training = drawn(per_suite, split="train", seed=7)
    options: dict[str, Any] = dict(student=student, teacher=teacher, routers=out)
    chosen = calibrate(
        drawn(per_suite, split="train", seed=8), out / "thresholds", router_problems=training, **options,
        **QUICK if quick else {},
    )  # fmt: skip
    methods = ["student", "teacher", *([] if quick else ["steer"])]  # steer sets its threshold itself
    if relays := students(world, "relay", models):
        methods += [f"relay:student={'+'.join(relays)}", f"teacher-free:student={'+'.join(relays)}"]
    if plain := students(world, "grpo", models):
        methods.append(f"grpo:student={'+'.join(plain)}")
    table = evaluate(
        [*methods, *chosen["method"].drop_duplicates()], drawn(count), out / "evaluation", training=training,
        max_tokens=160, batch_size=128, **options,
    )  # fmt: skip
    return table, chosen


def family(method: str) -> str:
    """What a method is called on the map.

    >>> family("relay:student=a+b"), family("grpo:student=a"), family("entropy:threshold=1.2,n=3")
    ('relay', 'plain GRPO', 'entropy')
    """
    name, _, options = method.partition(":")
    return "plain GRPO" if name == "grpo" or (name == "student" and options) else name


def winners(table: pd.DataFrame, chosen: pd.DataFrame, budgets: Sequence[float] = BUDGETS) -> pd.DataFrame:
    """The most accurate method of a world within each budget.

    A calibrated trigger takes part at the budget that it was calibrated for and at larger ones. A student takes part
    where its share of teacher tokens, or the lower end of that share's interval, is within the budget.

    Args:
        table: of ``evaluate``.
        chosen: of ``calibrate``.
        budgets: shares of teacher tokens.

    Returns:
        For each budget ``winner``, ``method``, ``accuracy``, ``low``, ``high``, ``teacher_share``, ``gap``, ``gap_low``
        and ``gap_high``, and ``tied``: the other families with a method that the paired bootstrap cannot tell from it.
    """
    figures, right = summary(table).set_index("method"), columns(table, "correct")
    reached = figures["teacher_low"].fillna(figures["teacher_share"])  # of one problem there is no interval
    calibrated = chosen.groupby("method")["budget"].min()
    rows = []
    for budget in budgets:
        least = np.array([calibrated.get(m, reached[m]) for m in figures.index], float)
        own = figures[least <= budget].drop(index="teacher", errors="ignore")
        best = str(own["accuracy"].idxmax())
        even = {family(m) for m in own.index if not paired(right[best], right[m]).low > 0} - {family(best)}
        kept = ["accuracy", "low", "high", "teacher_share", "gap", "gap_low", "gap_high"]
        row = {"budget": budget, "winner": family(best), "method": best, **own.loc[best, kept]}
        rows.append(row | {"tied": " ".join(sorted(even))})
    return pd.DataFrame(rows)


def at_budgets(table: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Every method of a world on the test problems: a trigger once for each budget, all others without one.

    Args:
        table: of ``evaluate``.
        chosen: of ``calibrate``.

    Returns:
        ``family``, ``budget``, ``method``, ``accuracy``, ``teacher_share`` and ``gap``, each figure with its interval.
    """
    rows = (
        summary(table)
        .merge(chosen[["method", "budget"]], on="method", how="left")
        .assign(family=lambda rows: rows["method"].map(family))
    )
    figures = ["accuracy", "low", "high", "teacher_share", "teacher_low", "teacher_high", "gap", "gap_low", "gap_high"]
    return rows[["family", "budget", "method", *figures]]


def compared(table: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The relay minus each calibrated trigger, with the shares of both: points, paired interval, p."""
    figures, right = summary(table).set_index("method"), columns(table, "correct")
    rows = []
    for relay in [m for m in figures.index if family(m) == "relay"]:
        for method in chosen["method"].drop_duplicates():
            points = paired(right[relay], right[method])
            shares = figures.loc[[relay, method], "teacher_share"]
            rows.append((method, *shares, points.value, points.low, points.high, points.p))
    return pd.DataFrame(rows, columns=["method", "relay_share", "share", "relay_minus_method", "low", "high", "p"])


def draw_map(worlds: dict[str, tuple[dict[str, Any], pd.DataFrame]]) -> pd.DataFrame:
    """One row for each world and budget: where the world lies, and who wins there.

    Args:
        worlds: of each world ``measure_dials`` and ``winners``.
    """
    parts = []
    for world, (measured, won) in worlds.items():
        place = {"world": world} | dial_columns(measured)
        parts.append(won.assign(**place)[[*place, *won.columns]])
    return pd.concat(parts, ignore_index=True)
