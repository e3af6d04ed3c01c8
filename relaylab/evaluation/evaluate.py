"""Evaluation: every system on the same problems with the same seeds, in a folder that resumes after any kill.

out/config.json           what is evaluated; another evaluation is refused the folder
out/traces/SEED/*.jsonl   the traces, one file per system and student
out/table.csv             one row per problem, method, student and sample
out/summary.csv           one row per method (``stats.summary``)
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from relaylab.defaults import TEACHER, UNTRAINED
from relaylab.engine.load import fingerprint_weights
from relaylab.evaluation.eval_run import EvalRun, ModelCache
from relaylab.evaluation.stats import summary
from relaylab.evaluation.systems import ASKING, SYSTEMS, RelaySystem, System, system
from relaylab.evaluation.table import read_table, rows_of, write_table
from relaylab.files import CONFIG, bind_folder, check_config, own_code, plain, read_json, write_json
from relaylab.relay.config import RelayConfig
from relaylab.relay.names import is_url, models_of, without_secrets
from relaylab.relay.pair import notice
from relaylab.relay.teachers import NoTeacher, Teacher, every_teacher
from relaylab.tasks.suites import Problem, problem_texts

RELAY_OPTIONS = {f.name for f in fields(RelayConfig)}
KS = (2, 4, 8, 16, 32)  # of pass@k


def evaluate(
    methods: Sequence[str], problems: Sequence[Problem], out: str | Path, *,
    student: str = UNTRAINED, teacher: str | Teacher = TEACHER, config: RelayConfig | None = None,
    samples: int = 1, seed: int = 0, training: Sequence[Problem] = (), batch_size: int = 64, suffix: str = "",
    shard: str | None = None, routers: str | Path | None = None, progress: bool = True, **options: Any,
) -> pd.DataFrame:  # fmt: skip
    """Decode the problems with every system; the same call resumes, and more methods may be added to a folder.

    Args:
        methods: texts of ``systems.system``. ``relay:student=a+b+c`` is one method by several students.
        problems: decoded by each of them.
        out: folder of the traces and tables.
        student: the untrained one, of all methods that name no other.
        teacher: a name, a folder, a hub id, a server's URL, or a ``Teacher``; by default that of the student's world.
        config: of the relays.
        samples: answers per problem and method, for avg@k and pass@k; sample j has the seed ``seed + j``.
        seed: random seed.
        training: problems that methods learn from (citer, r2r, steer).
        batch_size: rows decoded together.
        suffix: put after each question, training questions included.
        shard: ``i/n`` decodes that part of the problems and writes no table. The call without it merges the parts.
        routers: the folder that keeps trained routers; by default ``out``.
        progress: show bars.
        options: fields of ``RelayConfig``, which override ``config``; device and dtype of local models.

    Returns:
        The table, also in ``out/table.csv``. Answers whose teacher failed are ``excluded``: they are missing values, a
        warning counts them, and the same call tries them again.

    Raises:
        ValueError: if ``out`` holds another evaluation, or a method by other students; for a method that is unknown,
            named twice, or lacks a teacher; for several samples at temperature 0, which would all be equal.
    """
    relay_options = {k: options.pop(k) for k in [*options] if k in RELAY_OPTIONS}
    config = replace(config or RelayConfig(), **relay_options)
    if samples < 1 or (samples > 1 and config.temperature == 0):
        raise ValueError(f"samples is {samples}; at least 1, and at temperature 0 no more, since all would be equal")
    if not problems:
        raise ValueError("there is no problem to evaluate on; give at least one")
    chosen = _chosen(methods)
    if shard and all(one.whole for _, one in chosen):
        names = ", ".join(label for label, _ in chosen)
        raise ValueError(f"{names}: these methods take all problems together and no shard; leave the shard out")
    if teacher == "none" or isinstance(teacher, NoTeacher):
        asking = [label for label, one in chosen if isinstance(one, ASKING) and not getattr(one, "teacher", "")]
        if asking:
            raise ValueError(
                f"the method {asking[0]!r} needs a teacher, and there is none; leave it out, or name a teacher"
            )
    out = Path(out)
    _check_students(out, chosen)
    questions, training = ([replace(p, question=p.prompt(suffix)) for p in part] for part in (problems, training))
    models = ModelCache(teacher, training, config.max_tokens, options, untrained=student)
    name = teacher if isinstance(teacher, str) and not is_url(teacher) else models.teacher.name
    made_with = {"student": without_secrets(student), "teacher": name, **asdict(config), "samples": samples}
    made_with |= {"seed": seed, "training": _digest(training), "suffix": suffix, "problems": [p.id for p in problems]}
    made_with |= {"problem_texts": _digest(problems), "weights": _weights(models, [s for _, s in chosen])}
    made_with |= models.precision
    names = {models.model(own) for _, one in chosen if (own := getattr(one, "student", ""))}
    if hint := next(filter(None, (notice(name, *(p.question for p in problems)) for name in names)), None):
        warnings.warn(hint, stacklevel=2)
    _bind(out, made_with)
    models.keep, models.progress = Path(routers or out), progress
    rows = []
    for j in range(samples):
        folder = out / "traces" / str(seed + j)
        folder.mkdir(parents=True, exist_ok=True)
        run = EvalRun(models, questions, folder, config, seed + j, batch_size, shard, progress, given=relay_options)
        for label, one in chosen:
            if not (shard and one.whole):
                rows.append(rows_of(run.traces(one), label, _student(one), j))
    table = pd.concat(rows, ignore_index=True)
    if lost := int(table["excluded"].sum()):
        text = f"{lost} of {len(table)} answers were excluded because a model failed"
        warnings.warn(f"{text}; they are missing values, and the same call tries them again", stacklevel=2)
    if shard:
        return table
    table = _with_earlier(out, table)
    write_table(table, out / "table.csv")
    write_table(summary(table, ks=[k for k in KS if k <= samples]), out / "summary.csv")
    return table


def variants(text: str) -> list[tuple[str, System]]:
    """The systems that a text names, one per student, each with the label that they share.

    Raises:
        ValueError: for what ``system`` refuses, and for a student without a name.

    >>> [(label, s.student) for label, s in variants("relay:student=relay+warmup")]
    [('relay', 'relay'), ('relay', 'warmup')]
    """
    before, key, after = text.partition("student=")
    names, comma, rest = after.partition(",")
    if key and not all(names.split("+")):
        raise ValueError(f"{text!r} has a student without a name; + stands between students, and in no student's name")
    several = [system(f"{before}{key}{name}{comma}{rest}") for name in names.split("+")]
    shared = several[0]
    if len(several) > 1:  # the label of them all names none
        shared = replace(shared, student=getattr(SYSTEMS[shared.name], "student", ""))
    return [(shared.label, one) for one in several]


def _student(one: System) -> str:
    """The student of a system, as the table has it; of one without a student, none."""
    return without_secrets(getattr(one, "student", ""))


def _chosen(methods: Sequence[str]) -> list[tuple[str, System]]:
    groups = [variants(text) for text in methods]
    chosen = [pair for group in groups for pair in group]
    for labels in ([group[0][0] for group in groups], [one.label for _, one in chosen]):
        if twice := [label for label, count in Counter(labels).items() if count > 1]:
            raise ValueError(f"the method {twice[0]!r} is named twice")
    if not chosen:
        raise ValueError("there is no method to evaluate; name at least one")
    return chosen


# The folder -----------------------------------------------------------------------------------------------------------


def _weights(models: ModelCache, systems: Sequence[System]) -> dict[str, str]:
    """Digests of the weights of local models, and of own systems: a name may stand for something else tomorrow."""
    teachers = [models.default_teacher, *(s.teacher for s in systems if isinstance(s, RelaySystem))]
    names = {models.model(getattr(s, "student", "student")) for s in systems}
    names |= {model for t in teachers if type(t) is str for model in models_of(t).values()}
    weights = {name: fingerprint_weights(name) for name in sorted(names - {"", "none"}) if not is_url(name)}
    ready = [] if isinstance(models.default_teacher, str) else every_teacher([models.default_teacher])
    engines = {teacher.name: engine for teacher in ready if (engine := getattr(teacher, "engine", None))}
    return weights | own_code(*systems) | {name: fingerprint_weights(engine) for name, engine in engines.items()}


def _digest(problems: Sequence[Problem]) -> str:
    text = json.dumps(problem_texts(problems)).encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest() if problems else ""


def _bind(out: Path, config: dict[str, Any]) -> None:
    """Bind the folder to the configuration. Later calls may add models, and problems to learn from, but change none."""
    path = out / CONFIG
    if not path.exists():
        bind_folder(out, config)
        return
    before = read_json(path)
    if not isinstance(before, dict) or not isinstance(before.get("weights"), dict):
        raise ValueError(f"{path} is no configuration of an evaluation; choose another folder or remove it")
    now = plain(config)
    weights, training = before["weights"], before.get("training")
    merged = now | {"weights": weights | now["weights"], "training": now["training"] or training}
    check_config(out, before | {"weights": now["weights"] | weights, "training": training or now["training"]}, merged)
    if merged != before:
        write_json(path, merged)


def _check_students(out: Path, chosen: Sequence[tuple[str, System]]) -> None:
    """A method means the same students in the whole folder: those of this call, or some of them."""
    if not (out / "table.csv").exists():
        return
    now, methods = {(label, _student(one)) for label, one in chosen}, {label for label, _ in chosen}
    for method, student in read_table(out)[["method", "student"]].drop_duplicates().to_numpy():
        if method in methods and (method, student) not in now:
            remedy = f"name {student!r}, too, or choose another folder"
            raise ValueError(f"{out} has the method {method!r} by another student, {student!r}; {remedy}")


def _with_earlier(out: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table with the rows of methods that an earlier call evaluated."""
    if not (out / "table.csv").exists():
        return table
    earlier, key = read_table(out), ["method", "student"]
    kept = earlier[~pd.MultiIndex.from_frame(earlier[key]).isin(pd.MultiIndex.from_frame(table[key]))]
    return pd.concat([kept, table], ignore_index=True) if len(kept) else table
