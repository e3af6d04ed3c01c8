"""Where help counts: short teacher turns put into answers of the student alone, and what becomes of each.

An *intervention* forks an answer at one token: the teacher writes ``n`` tokens there, silently, and the student goes on
alone. Two figures describe a pair:

- h, ``harmless``: of the tokens at which the student is uncertain, those where the intervention leaves the answer as it
  was. A trigger on entropy spends its teacher tokens there for nothing.
- c, ``confident``: of the wrong answers that an intervention mends, those whose *decisive token* is certain. The
  decisive token is the last one at which the intervention still mends: the first wrong token that matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from relaylab.evaluation.counterfactual import graded_forks, told_of_lost
from relaylab.evaluation.score import recorded
from relaylab.evaluation.stats import NAN, Interval, interval, mean
from relaylab.evaluation.token_router import fit_probe, margins
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.relay import Relay
from relaylab.tasks.grading import extract_boxed
from relaylab.trace import UNFINISHED, Trace

HIGH = 0.6  # nats; the most uncertain fifth of the tokens of real models lies above (Wang et al., 2506.01939)
COLUMNS = ("trace", "id", "suite", "level", "position", "token", "entropy", "n", "before", "after", "same")


def interventions(
    traces: Sequence[Trace], relay: Relay, positions: Sequence[Sequence[int]], *, n: int = 8, progress: bool = True
) -> pd.DataFrame:
    """Let the teacher write ``n`` tokens at positions of graded traces of the student alone; one row each.

    Args:
        traces: from ``Pair.decode`` with ``record=True``, without calls.
        relay: decodes the forks. The student makes no call of its own after the intervention.
        positions: of each trace, in tokens of its completion.
        n: tokens of the teacher.
        progress: show a bar.

    Returns:
        The columns ``COLUMNS``. ``entropy`` (nats) is the student's at the token; ``before`` and ``after``: whether the
        answer is right; ``same``: whether the intervention left the final answer as it was. A fork in which a model
        failed is a missing value: it has no row, and a warning counts them.

    Raises:
        ValueError: for traces without a recorded entropy or without a problem.
        RuntimeError: where a model failed in every fork.
    """
    for trace in traces:
        if trace.entropies is None or "answer" not in trace.problem:
            raise ValueError(f"trace {trace.id!r} lacks entropies or a problem; use Pair.decode(..., record=True)")
    config = replace(relay.config, write_call=False, max_calls=1, forbid_calls=False, on_failure="exclude")
    silent = Relay(relay.student, relay.teacher, config, batch_size=relay.batch_size)
    chosen = [(k, traces[k], at) for k, places in enumerate(positions) for at in places]
    with tqdm(total=len(chosen), desc="interventions", disable=not progress) as bar:
        forks = graded_forks(silent, [trace for _, trace, _ in chosen], [at for *_, at in chosen], bar, call=n)
    boxes = [extract_boxed(trace.teacher_view) for trace in traces]
    rows = []
    for (number, trace, at), fork in zip(chosen, forks):
        if fork.stop in UNFINISHED:
            continue
        same = bool(fork.correct and trace.correct) or boxes[number] == extract_boxed(fork.teacher_view)
        rows.append((
            number, trace.id, trace.problem.get("suite"), trace.problem.get("level"), at, trace.pieces[at],
            trace.entropies[at] if trace.entropies else None, n, trace.correct, fork.correct, same,
        ))  # fmt: skip
    told_of_lost(len(forks), len(rows))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def harmless(frame: pd.DataFrame, *, threshold: float = HIGH, seed: int = 0) -> Interval:
    """h: the share of interventions above ``threshold`` nats that leave the answer as it was; a mean over answers."""
    high = frame[frame["entropy"] > threshold]
    return mean(high.groupby("trace")["same"].mean(), seed=seed)


def harmless_wrong(frame: pd.DataFrame, *, threshold: float = HIGH, seed: int = 0) -> Interval:
    """h of the wrong answers alone, where help could matter. In right answers nearly all is harmless."""
    return harmless(frame[~frame["before"].astype(bool)], threshold=threshold, seed=seed)


def decisive(frame: pd.DataFrame) -> pd.DataFrame:
    """The last row of each wrong trace at which the intervention mends; of a frame with every position."""
    mended = frame[~frame["before"].astype(bool) & frame["after"].astype(bool)]
    return mended.loc[mended.groupby("trace")["position"].idxmax()]


def confident(frame: pd.DataFrame, *, threshold: float = HIGH, seed: int = 0) -> Interval:
    """c: the share of decisive tokens at or below ``threshold`` nats."""
    return mean((decisive(frame)["entropy"] <= threshold).astype(float), seed=seed)


@dataclass(frozen=True, slots=True)
class Dials:
    """What a student is like, measured with a teacher. Four signals have an AUROC of "this token is decisive"."""

    harmless: Interval  # h
    harmless_wrong: Interval  # h of the wrong answers
    confident: Interval  # c
    high_share: float  # tokens above 0.6 nats, of all
    entropy: Interval  # AUROC of the student's entropy,
    margin: Interval  # of the difference between its two largest probabilities,
    divergence: Interval  # of KL(student || teacher), for which a teacher here reads every token,
    probe: Interval  # of a linear probe on its hidden state, on problems that it was not trained on
    decisive: int  # wrong answers with a decisive token


def dials(traces: Sequence[Trace], relay: Relay, *, n: int = 8, seed: int = 0, progress: bool = True) -> Dials:
    """Measure h and c of a pair, and how well four signals tell the decisive tokens from all others.

    Args:
        traces: greedy answers of the student alone, as ``interventions`` needs them. Those that did not end are left
            out.
        relay: of the student and a teacher.
        n: tokens of the teacher.
        seed: of the draws, four uncertain tokens of each trace for h.
        progress: show bars.

    Raises:
        ValueError: where no answer ended.
    """
    if not (traces := [t for t in traces if t.stop == "end"]):
        raise ValueError("no answer ended within its limit of tokens; h and c are of answers that end")
    uncertain = interventions(traces, relay, uncertain_places(traces, seed=seed), n=n, progress=progress)
    everywhere = [[] if t.correct else range(len(t.completion_ids) - 1) for t in traces]
    forks = interventions(traces, relay, everywhere, n=n, progress=progress)
    return dials_of(traces, relay, uncertain, forks, seed=seed)


def uncertain_places(traces: Sequence[Trace], *, seed: int = 0) -> list[list[int]]:
    """Four tokens of each trace, or fewer, drawn from those above ``HIGH`` nats."""
    rng = np.random.default_rng(seed)
    high = [np.flatnonzero(np.array(t.entropies, float) > HIGH) for t in traces]
    return [rng.permutation(places)[:4].tolist() for places in high]


def dials_of(
    traces: Sequence[Trace], relay: Relay, uncertain: pd.DataFrame, forks: pd.DataFrame, *, seed: int = 0
) -> Dials:
    """``Dials`` of interventions that were made before.

    Args:
        traces: those that the frames count, all of which ended.
        relay: its student reads them, for the margin and the probe, and its teacher for the divergence. That is NaN
            with a teacher behind a server or with another tokenizer.
        uncertain: interventions at ``uncertain_places``.
        forks: interventions at every token but the last of the wrong answers.
        seed: of the intervals and the probe.
    """
    entropies = [np.array(t.entropies, float) for t in traces]
    found = decisive(forks)
    where = dict(zip(found["trace"], found["position"]))
    read = (relay.engine.read(t.prompt_ids, t.completion_ids) for t in traces)
    signals = [(margins(logits), hidden.cpu()) for logits, hidden in read]
    labels = [np.arange(len(t.completion_ids)) == where.get(k, -1) for k, t in enumerate(traces)]
    # A token after the decisive one is part of an answer that is lost already.
    keep = [np.arange(len(t.completion_ids)) <= where.get(k, len(t.completion_ids)) for k, t in enumerate(traces)]
    keep = [mask & bool(t.correct or k in where) for k, (mask, t) in enumerate(zip(keep, traces))]
    signals_of = (labels, entropies, _divergences(traces, relay))
    y, entropy, divergence = (np.concatenate([a[m] for a, m in zip(arrays, keep)]) for arrays in signals_of)
    margin = np.concatenate([s[0][m] for s, m in zip(signals, keep)])
    states = torch.cat([s[1][torch.from_numpy(m)] for s, m in zip(signals, keep)])
    answer = np.concatenate([np.full(m.sum(), k) for k, m in enumerate(keep)])
    half = answer % 2 == 1
    train, labelled = torch.from_numpy(~half), torch.from_numpy(y).float()
    probe = fit_probe(states, labelled, train, width=0, seed=seed)(states)[:, 0].detach().numpy()
    high_share = float((np.concatenate(entropies) > HIGH).mean())
    every = np.ones(len(y), bool)

    def known(score: np.ndarray, tokens: np.ndarray) -> Interval:
        return auroc_interval(score[tokens], y[tokens], answer[tokens], seed=seed)

    return Dials(
        harmless(uncertain, seed=seed), harmless_wrong(uncertain, seed=seed), confident(forks, seed=seed), high_share,
        known(entropy, every), known(-margin, every), known(divergence, every), known(probe, half), len(found),
    )  # fmt: skip


def _divergences(traces: Sequence[Trace], relay: Relay) -> list[np.ndarray]:
    """KL(student || teacher) before each token, in nats; 0 in a command, which no teacher sees."""
    if not (relay.shared and isinstance(relay.teacher, LocalTeacher)):
        return [np.full(len(t.completion_ids), NAN) for t in traces]
    read = recorded(relay.teacher, traces, against=relay.engine)
    return [np.nan_to_num(np.array(t.divergences, float)) for t in read]


def auroc(score: np.ndarray, label: np.ndarray, weight: np.ndarray | None = None) -> float:
    """The chance that a labelled token has a higher score than another; ties count half.

    ``weight``: how many tokens each stands for.

    >>> auroc(np.array([0.1, 0.4, 0.9]), np.array([False, False, True]))
    1.0
    """
    if label.all() or not label.any() or np.isnan(score).any():
        return NAN
    weight = np.ones(len(score)) if weight is None else weight
    _, at = np.unique(score, return_inverse=True)
    others = np.bincount(at, weight * ~label)  # of each score
    below = np.cumsum(others) - others / 2
    return float(np.average(below[at[label]], weights=weight[label]) / others.sum())


def auroc_interval(
    score: np.ndarray, label: np.ndarray, answer: np.ndarray, weight: np.ndarray | None = None, *, seed: int = 0
) -> Interval:
    """``auroc`` with its interval; the bootstrap draws answers. ``answer`` says which one each token is of."""
    weight = np.ones(len(score)) if weight is None else weight
    if np.isnan(auroc(score, label, weight)):
        return Interval(NAN, NAN, NAN)
    tokens = [np.flatnonzero(answer == k) for k in np.unique(answer)]

    def of_answers(drawn: np.ndarray) -> float:
        some = np.concatenate([tokens[k] for k in drawn])
        known = auroc(score[some], label[some], weight[some])
        return float(np.nan_to_num(known, nan=0.5))  # a draw without a label knows nothing

    return interval(of_answers, len(tokens), seed=seed)
