"""How well a model solves the embedded suites, alone and with a teacher: the scores in the zoo's manifest."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from relaylab.engine.engine import Engine
from relaylab.relay.config import RelayConfig
from relaylab.relay.pair import Pair
from relaylab.relay.teachers import Teacher
from relaylab.tasks.suites import SUITES, level_of, problems
from relaylab.trace import to_frame


def suite_scores(
    engine: Engine,
    teacher: Teacher,
    config: RelayConfig,
    *,
    count: int = 200,
    suites: Sequence[str] = SUITES,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores on the first ``count`` test problems of each suite: level, right, count, tokens, teacher (its tokens).

    >>> from relaylab.engine.load import load_engine
    >>> from relaylab.relay.teachers import NoTeacher
    >>> suite_scores(load_engine("warm"), NoTeacher(), RelayConfig(max_tokens=160), count=2).loc["savings", "count"]
    np.int64(2)
    """
    if count < 1:
        raise ValueError(f"count is {count}; a score needs at least one problem")
    rows = {}
    for suite in suites:
        traces = Pair(engine, teacher).decode(
            problems(suite, count), seed=seed, config=config, batch_size=100, progress=False
        )
        frame = to_frame(traces)
        rows[suite] = [level_of(suite), *frame[["correct", "tokens", "teacher_tokens"]].astype(int).sum(), count]
    columns = ["level", "right", "tokens", "teacher", "count"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
