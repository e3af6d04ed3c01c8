"""How well an embedded model solves the embedded suites, alone and with the teacher: the scores in the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relaylab.engine.engine import Engine
from relaylab.relay.config import RelayConfig
from relaylab.relay.pair import Pair
from relaylab.relay.teachers import NoTeacher, Teacher
from relaylab.tasks.suites import SUITES, level_of, problems
from relaylab.trace import TEACHER


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy on one suite: ``right`` of ``count`` test problems."""

    suite: str
    level: str
    right: int
    count: int

    @property
    def accuracy(self) -> float:
        return self.right / self.count


def suite_scores(
    engine: Engine,
    *,
    count: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    suites: Sequence[str] = SUITES,
    max_tokens: int = 160,
) -> list[Score]:
    """Sampled accuracy on the first ``count`` test problems of each suite, calls forbidden."""
    if count < 1:
        raise ValueError(f"count is {count}; a score needs at least one problem")
    pair = Pair(engine, NoTeacher())
    scores = []
    for suite in suites:
        traces = pair.decode(
            problems(suite, count),
            seed=seed,
            temperature=temperature,
            max_tokens=max_tokens,
            batch_size=100,
            progress=False,
        )
        scores.append(Score(suite, level_of(suite), sum(bool(t.correct) for t in traces), count))
    return scores


def relay_scores(
    engine: Engine, teacher: Teacher, config: RelayConfig, *, count: int = 200, suites: Sequence[str] = SUITES
) -> dict[str, dict[str, int]]:
    """Greedy relays on the first ``count`` test problems of each suite: ``right``, ``count``, and the ``tokens`` of all
    responses with those of them that the ``teacher`` wrote.

    >>> from relaylab.engine.load import load_engine
    >>> found = relay_scores(load_engine("warm"), NoTeacher(), RelayConfig(max_tokens=160), count=2, suites=["savings"])
    >>> found["savings"]["count"], found["savings"]["teacher"]
    (2, 0)
    """
    found = {}
    for suite in suites:
        traces = Pair(engine, teacher).decode(problems(suite, count), config=config, batch_size=100, progress=False)
        found[suite] = {
            "right": sum(bool(t.correct) for t in traces),
            "count": count,
            "tokens": sum(len(t.completion_ids) for t in traces),
            "teacher": sum(t.count(TEACHER) for t in traces),
        }
    return found
