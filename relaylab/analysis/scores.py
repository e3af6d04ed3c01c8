"""How well one model solves the embedded suites alone: the scores in the zoo's manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relaylab.decoding.pair import Pair
from relaylab.models.engine import Engine
from relaylab.models.teachers import NoTeacher
from relaylab.tasks.suites import SUITES, level_of, problems


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
