"""Are the embedded models those of the manifest, as good as it says, and as good as they have to be? This is
``relaylab zoo verify``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from relaylab import defaults
from relaylab.engine import load as zoo
from relaylab.engine.engine import Engine
from relaylab.files import read_json, write_json
from relaylab.relay.config import RelayConfig
from relaylab.relay.pair import Pair, load_teacher
from relaylab.relay.teachers import NoTeacher, Teacher
from relaylab.tasks.suites import ALL_SUITES, SUITES, level_of, problems
from relaylab.trace import TEACHER

# What makes the pair a pair: its accuracy at temperature 1, calls forbidden, on every suite of a level.
REQUIRED = (
    ("student", "easy", "at least", 0.85),
    ("student", "hard", "below", 0.25),
    ("teacher", "easy", "at least", 0.95),
    ("teacher", "hard", "at least", 0.90),
    ("teacher", "beyond", "below", 0.30),
)
MAX_BYTES = 8_000_000  # of all weights together: they travel with the package
DIALS = "dials.json"  # beside an untrained student: what `relaylab map --count 50 --training 10` measured of it


@dataclass(frozen=True, slots=True)
class Finding:
    ok: bool
    text: str


def accuracy(entry: dict[str, int] | None) -> float | None:
    """The accuracy of a suite's entry in the manifest; None without an entry, or if nothing was scored."""
    return entry["right"] / entry["count"] if entry and entry["count"] else None


def percent(share: float | None) -> str:
    """
    >>> percent(0.955), percent(None)
    ('95.5 %', '-')
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def suite_scores(engine: Engine, *, count: int) -> dict[str, dict[str, int]]:
    """``relay_scores`` of a model alone: sampled at temperature 1, calls forbidden."""
    return relay_scores(engine, NoTeacher(), RelayConfig(temperature=1.0, max_tokens=160), count=count)


def relay_scores(engine: Engine, teacher: Teacher, config: RelayConfig, *, count: int) -> dict[str, dict[str, int]]:
    """Of each suite: how many of its first ``count`` test problems are right, all tokens, and the teacher's."""
    if count < 1:
        raise ValueError(f"count is {count}; a score needs at least one problem")
    scores = {}
    for suite in ALL_SUITES:
        traces = Pair(engine, teacher).decode(problems(suite, count), config=config, batch_size=100, progress=False)
        right, tokens = sum(bool(t.correct) for t in traces), sum(len(t.completion_ids) for t in traces)
        written = sum(t.count(TEACHER) for t in traces)
        scores[suite] = {"right": right, "count": count, "tokens": tokens, "teacher": written}
    return scores


def write_manifest(*, count: int) -> None:
    """Checksums, recipes and scores, on ``count`` >= 1 problems per suite, of all embedded models.

    A model whose files and count are those of the manifest keeps its scores.
    """
    if count < 1:
        raise ValueError(f"count is {count}; the manifest holds scores, which need at least one problem a suite")
    command = f"relaylab zoo verify --write --count {count}  (temperature 1, seed 0, calls forbidden)"
    before, entries = zoo.manifest(), dict[str, Any]()
    for name, path in zoo.embedded().items():
        checksum, entry = zoo.checksum(path), before.get(name, {})
        dials = {"dials": read_json(path / DIALS)["dials"]} if (path / DIALS).exists() else {}
        if entry.get("sha256") == checksum and entry.get("scored_with") == command:
            entries[name] = entry | dials
            continue
        engine = zoo.load_engine(name)
        scores = suite_scores(engine, count=count)
        entries[name] = {
            "sha256": checksum,
            "parameters": engine.model.num_parameters(),
            "made_with": f"relaylab zoo train {name} --out DIR",
            **read_json(path / "training.json"),
            "scored_with": command,
            "scores": {s: {"level": level_of(s), "right": n["right"], "count": count} for s, n in scores.items()},
            **dials,
        }
        if (path / "relay_config.json").exists():  # trained to call: with the teacher it is another
            teacher = load_teacher(defaults.TEACHER)
            entries[name]["relay_scored_with"] = f"the same command  (greedy, with {teacher.name}, caps as in training)"
            config = RelayConfig(**read_json(path / "relay_config.json"))
            entries[name]["relay_scores"] = relay_scores(engine, teacher, config, count=count)
    write_json(zoo.MANIFEST, entries)


def verify(*, count: int) -> list[Finding]:
    """Check the checksums, the manifest's scores against what is required of the pair, and fresh scores.

    Args:
        count: test problems per suite to score anew; 0 scores none. A fresh score is wrong where an exact binomial test
            against the manifest's accuracy gives p < 0.001.
    """
    entries, models, changed, findings = zoo.manifest(), zoo.embedded(), zoo.changed(), []
    for name in sorted(entries.keys() | models.keys()):
        if name not in entries or name not in models:
            findings.append(Finding(False, f"{name}: {'no such files' if name in entries else 'not in the manifest'}"))
            continue
        verdict = "differs from the manifest" if name in changed else "as in the manifest"
        findings.append(Finding(name not in changed, f"{name}: checksum {verdict}"))
        if count:
            scores = suite_scores(zoo.load_engine(name), count=count)
            before = entries[name].get("scores", {})
            findings += [
                _compared(f"{name}: {suite}", suite, score, before.get(suite)) for suite, score in scores.items()
            ]
    return findings + required(entries)


def required(entries: dict[str, dict[str, Any]]) -> list[Finding]:
    """Is the pair of this manifest what it should be: one finding a model and level, and one on the size of all."""
    findings = []
    for name, level, relation, bound in REQUIRED:
        scores, ok, texts = entries.get(name, {}).get("scores", {}), True, []
        for suite in (s for s in SUITES if level_of(s) == level):
            score = accuracy(scores.get(suite))
            ok &= score is not None and (score >= bound if relation == "at least" else score < bound)
            texts.append(f"{suite} {percent(score)}")
        findings.append(Finding(ok, f"{name}: {level} suites {relation} {percent(bound)}: {', '.join(texts)}"))
    size = sum(file.stat().st_size for file in zoo.WEIGHTS.rglob("*.safetensors"))
    text = f"all weights together below {MAX_BYTES / 1e6:.0f} MB: {size / 1e6:.2f} MB"
    return [*findings, Finding(size < MAX_BYTES, text)]


def _compared(name: str, suite: str, score: dict[str, int], entry: dict[str, int] | None) -> Finding:
    expected, ok = accuracy(entry), False
    if expected is not None:  # kept off 0 and 1, where a single slip would be impossible rather than unlikely
        ok = binomtest(score["right"], score["count"], min(max(expected, 0.01), 0.99)).pvalue >= 0.001
    text = f"{name} ({level_of(suite)}) {percent(accuracy(score))}, manifest {percent(expected)}"
    return Finding(bool(ok), text)
