"""Evaluation: every method on the same problems with the same seeds, into a folder that any kill leaves resumable.

    out/terms.json            what was evaluated; another evaluation in the same folder is refused
    out/traces/SEED/*.jsonl   the traces, a file a method and student
    out/table.csv             one row a problem, method, student and sample
    out/summary.csv           one row a method (``statistics.summary``)

Which tokens are whose, and at what price, is read from the traces (``cost.py``, ``placement.py``); figures and the page
for people are ``views/report.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from relaylab.evaluation.stats import summary
from relaylab.evaluation.systems import Bench, Method, Models, method
from relaylab.evaluation.table import read_table, rows_of, write_table
from relaylab.relay.config import RelayConfig
from relaylab.relay.teachers import Teacher
from relaylab.tasks.suites import Problem


def evaluate(
    methods: Sequence[str],
    problems: Sequence[Problem],
    out: str | Path,
    *,
    student: str = "student",
    teacher: str | Teacher = "teacher",
    config: RelayConfig | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    training: Sequence[Problem] = (),
    batch_size: int = 64,
    suffix: str = "",
    progress: bool = True,
    bench: Callable[..., Bench] = Bench,
    **options: Any,
) -> pd.DataFrame:
    """Decode ``problems`` with every method, ``samples`` times each; the table, which is also in ``out/table.csv``.

    methods: texts of ``baselines.method``. A student option may name several, ``relay:student=a+b+c``: the same method
    by several students, say one a training seed; their rows share the method's label. student: the untrained one, of
    all methods that name no other. samples: with a temperature, of avg@k and pass@k; sample j has the seed ``seed +
    j``. training: problems for what a baseline learns (citer). suffix: put behind each question, of training too.
    bench: makes a ``Bench``, say of a kind that reads traces made elsewhere. Further options (device, dtype) are for
    local models.

    The same call goes on where an interrupted one stopped, and repeats nothing; more methods may be added to a folder.
    Raises ValueError where ``out`` holds an evaluation on other terms, for an unknown method, and for several samples
    at temperature 0, which would all be the same.
    """
    if samples > 1 and temperature == 0:
        raise ValueError(f"{samples} samples at temperature 0 are {samples} times the same; set a temperature")
    out, config = Path(out), config or RelayConfig()
    chosen = [variants(text) for text in methods]  # before anything is written: an unknown method ends here
    asked, training = ([replace(p, question=p.prompt(suffix)) for p in part] for part in (problems, training))
    named = teacher if isinstance(teacher, str) else teacher.name
    terms = {
        "student": student,
        "teacher": named,
        "config": asdict(config),
        "samples": samples,
        "temperature": temperature,
        "seed": seed,
        "training": _digest(training),
    }
    _check_terms(out, terms | {"suffix": suffix, "problems": [p.id for p in problems]})
    models = Models(teacher, training, config.max_tokens, options, untrained=student)
    rows = []
    for j in range(samples):
        folder = out / "traces" / str(seed + j)
        terms = dict(config=config, seed=seed + j, temperature=temperature, batch_size=batch_size, progress=progress)
        decoded = bench(models, asked, folder, **terms)
        for label, variant in (pair for group in chosen for pair in group):
            rows.append(rows_of(decoded.traces(variant), label, getattr(variant, "student", ""), j))
    table = pd.concat(rows, ignore_index=True)
    table = _with_earlier(out / "table.csv", table)
    write_table(table, out / "table.csv")
    write_table(summary(table, ks=[k for k in (2, 4, 8, 16, 32) if k <= samples]), out / "summary.csv")
    return table


def variants(text: str) -> list[tuple[str, Method]]:
    """The methods that a text names, one a student, each with the label that they share.

    >>> [(label, m.student) for label, m in variants("relay:student=relay+warm")]
    [('relay', 'relay'), ('relay', 'warm')]
    """
    parts = text.split("student=", 1)
    if len(parts) == 1:
        one = method(text)
        return [(one.label, one)]
    names, _, rest = parts[1].partition(",")
    several = [method(f"{parts[0]}student={name}{',' if rest else ''}{rest}") for name in names.split("+")]
    if len(several) == 1:
        return [(several[0].label, several[0])]
    label = parts[0].rstrip(":,") + (f":{rest}" if rest else "")
    return [(label, m) for m in several]


def _digest(problems: Sequence[Problem]) -> str:
    told = json.dumps([[p.id, p.question] for p in problems]).encode()
    return hashlib.blake2b(told, digest_size=8).hexdigest() if problems else ""


def _check_terms(out: Path, terms: dict[str, Any]) -> None:
    path = out / "terms.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(terms, indent=1) + "\n")
        return
    known, now = json.loads(path.read_text()), json.loads(json.dumps(terms))
    if not known.get("training"):  # nothing in the folder has learned from problems
        known["training"] = now["training"]
        path.write_text(json.dumps(known, indent=1) + "\n")
    now["training"] = now["training"] or known["training"]  # and nothing does now
    if other := sorted(k for k in now.keys() | known.keys() if now.get(k) != known.get(k)):
        was = {k: known.get(k) for k in other if k != "problems"}
        raise ValueError(f"{out} holds an evaluation with other {', '.join(other)} ({was}); choose another folder")


def _with_earlier(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table with the rows of methods that an earlier call put there."""
    if not path.exists():
        return table
    earlier = read_table(path.parent)
    key = ["method", "student"]
    new = set(map(tuple, table[key].drop_duplicates().to_numpy()))
    kept = earlier[[tuple(row) not in new for row in earlier[key].to_numpy()]]
    return pd.concat([kept, table], ignore_index=True) if len(kept) else table
