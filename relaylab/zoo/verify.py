"""Are the embedded models those of the manifest, as good as it says, and as good as they have to be? Behind
``relaylab zoo verify``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from relaylab.engine import load as zoo
from relaylab.evaluation.scores import Score, relay_scores, suite_scores
from relaylab.relay.config import RelayConfig
from relaylab.relay.pair import load_teacher
from relaylab.tasks.suites import SUITES, level_of

# What makes the pair a pair: its accuracy at temperature 1, calls forbidden, on every suite of a level.
REQUIRED = (
    ("student", "easy", "at least", 0.85),
    ("student", "hard", "below", 0.25),
    ("teacher", "easy", "at least", 0.95),
    ("teacher", "hard", "at least", 0.95),
    ("teacher", "beyond", "below", 0.30),
)
MAX_BYTES = 12_000_000  # of all embedded models together: they travel with the package


@dataclass(frozen=True, slots=True)
class Finding:
    ok: bool
    text: str


def accuracy(entry: dict[str, int] | None) -> float | None:
    """The accuracy of a suite's entry in the manifest; None where there is no entry, or nothing was scored."""
    return entry["right"] / entry["count"] if entry and entry["count"] else None


def percent(share: float | None) -> str:
    """
    >>> percent(0.955), percent(None)
    ('95.5 %', '-')
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def write_manifest(*, count: int) -> None:
    """Checksums, recipes and fresh scores, on ``count`` >= 1 problems a suite, of all embedded models."""
    if count < 1:
        raise ValueError(f"count is {count}; the manifest holds scores, which need at least one problem a suite")
    entries: dict[str, Any] = {}
    teacher = load_teacher("teacher")
    for name, path in zoo.embedded().items():
        engine = zoo.load_engine(name)
        training = json.loads((path / "training.json").read_text())
        entries[name] = {
            "sha256": zoo.checksum(path),
            "parameters": engine.model.num_parameters(),
            "made_with": f"relaylab zoo train {name} --out DIR",
            **training,
            "scored_with": f"relaylab zoo verify --write --count {count}  (temperature 1, seed 0, calls forbidden)",
            "scores": {
                s.suite: {"level": s.level, "right": s.right, "count": s.count}
                for s in suite_scores(engine, count=count)
            },
        }
        if (path / "adapter_config.json").exists():  # trained to call: with the teacher it is another
            entries[name]["relay_scored_with"] = "the same command  (greedy, with the teacher, caps as in training)"
            config = RelayConfig(**training["recipe"]["config"])
            entries[name]["relay_scores"] = relay_scores(engine, teacher, config, count=count)
    zoo.MANIFEST.write_text(json.dumps(entries, indent=1) + "\n")


def verify(*, count: int) -> list[Finding]:
    """Checksums, what is required of the pair by the manifest's scores, and where ``count`` > 0, fresh scores on that
    many problems a suite.

    A fresh score is wrong where an exact binomial test against the manifest's accuracy gives p < 0.001.
    """
    known, here, changed, findings = zoo.manifest(), zoo.embedded(), zoo.changed(), []
    for name in sorted(known.keys() | here.keys()):
        if name not in known or name not in here:
            findings.append(Finding(False, f"{name}: {'no such files' if name in known else 'not in the manifest'}"))
            continue
        same = name not in changed
        findings.append(
            Finding(same, f"{name}: checksum {'as in the manifest' if same else 'differs from the manifest'}")
        )
        if count:
            scores = suite_scores(zoo.load_engine(name), count=count)
            findings += [_compared(name, s, known[name].get("scores", {}).get(s.suite)) for s in scores]
    return findings + required(known)


def required(known: dict[str, dict[str, Any]]) -> list[Finding]:
    """Is the pair of this manifest what it should be: one finding a model and level, and one on the size of all."""
    findings = []
    for name, level, relation, bound in REQUIRED:
        entries, ok, told = known.get(name, {}).get("scores", {}), True, []
        for suite in (s for s in SUITES if level_of(s) == level):
            score = accuracy(entries.get(suite))
            ok &= score is not None and (score >= bound if relation == "at least" else score < bound)
            told.append(f"{suite} {percent(score)}")
        findings.append(Finding(ok, f"{name}: {level} suites {relation} {percent(bound)}: {', '.join(told)}"))
    size = sum(file.stat().st_size for file in zoo.WEIGHTS.rglob("*") if file.is_file())
    text = f"all models together below {MAX_BYTES / 1e6:.0f} MB: {size / 1e6:.1f} MB"
    return [*findings, Finding(size < MAX_BYTES, text)]


def _compared(name: str, score: Score, entry: dict[str, int] | None) -> Finding:
    expected = accuracy(entry)
    # Kept off 0 and 1, where a single slip would be impossible rather than unlikely.
    likely = (
        expected is not None and binomtest(score.right, score.count, min(max(expected, 0.01), 0.99)).pvalue >= 0.001
    )
    text = f"{name}: {score.suite} ({score.level}) {percent(score.accuracy)}, manifest {percent(expected)}"
    return Finding(bool(likely), text)
