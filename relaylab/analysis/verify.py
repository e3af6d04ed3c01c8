"""Are the embedded models those of the manifest, and as good as it says? Behind ``relaylab zoo verify``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from relaylab.analysis.scores import Score, suite_scores
from relaylab.models import zoo


@dataclass(frozen=True, slots=True)
class Finding:
    ok: bool
    text: str


def write_manifest(*, count: int) -> None:
    """Checksums, recipes and fresh scores of all embedded models."""
    entries: dict[str, Any] = {}
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
    zoo.MANIFEST.write_text(json.dumps(entries, indent=1) + "\n")


def verify(*, count: int) -> list[Finding]:
    """Checksums, and where ``count`` > 0, scores on that many problems a suite.

    A fresh score is wrong where an exact binomial test against the manifest's accuracy gives p < 0.001.
    """
    known, findings = zoo.manifest(), []
    for name in sorted(known.keys() | zoo.embedded().keys()):
        if name not in known or name not in zoo.embedded():
            findings.append(Finding(False, f"{name}: {'no such files' if name in known else 'not in the manifest'}"))
            continue
        same = name not in zoo.changed()
        findings.append(
            Finding(same, f"{name}: checksum {'as in the manifest' if same else 'differs from the manifest'}")
        )
        if count:
            scores = suite_scores(zoo.load_engine(name), count=count)
            findings += [_compared(name, s, known[name]["scores"][s.suite]) for s in scores]
    return findings


def _compared(name: str, score: Score, entry: dict[str, int]) -> Finding:
    # Kept off 0 and 1, where a single slip would be impossible rather than unlikely.
    expected = min(max(entry["right"] / entry["count"], 0.01), 0.99)
    likely = binomtest(score.right, score.count, expected).pvalue >= 0.001
    text = f"{name}: {score.suite} ({score.level}) {100 * score.accuracy:.0f} %, manifest {100 * expected:.0f} %"
    return Finding(bool(likely), text)
