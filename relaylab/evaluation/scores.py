"""How well a model solves the embedded suites, alone and with a teacher: the scores in the zoo's manifest."""

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


def suite_scores(engine: Engine, *, count: int = 200, suites: Sequence[str] = SUITES) -> list[Score]:
    """Sampled accuracy on the first ``count`` test problems of each suite, calls forbidden."""
    config = RelayConfig(temperature=1.0, max_tokens=160)
    scores = relay_scores(engine, NoTeacher(), config, count=count, suites=suites)
    return [Score(suite, level_of(suite), s["right"], count) for suite, s in scores.items()]


def relay_scores(
    engine: Engine, teacher: Teacher, config: RelayConfig, *, count: int = 200, suites: Sequence[str] = SUITES
) -> dict[str, dict[str, int]]:
    """Of each suite: how many of its first ``count`` test problems are right, all tokens, and the teacher's."""
    if count < 1:
        raise ValueError(f"count is {count}; a score needs at least one problem")
    scores = {}
    for suite in suites:
        traces = Pair(engine, teacher).decode(problems(suite, count), config=config, batch_size=100, progress=False)
        right, tokens = sum(bool(t.correct) for t in traces), sum(len(t.completion_ids) for t in traces)
        written = sum(t.count(TEACHER) for t in traces)
        scores[suite] = {"right": right, "count": count, "tokens": tokens, "teacher": written}
    return scores
