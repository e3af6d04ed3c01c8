"""The numbers that lessons 04 and 05 ask for, and their functions written by hand."""

from __future__ import annotations

import math

import pytest

from lesson.checks import NotYet, check
from relaylab.tasks.suites import Problem
from relaylab.training.data_filter import Rate, keep


def test_solutions_written_by_hand_are_right():
    def stray_tokens(teacher, total, rho):
        return max(0, math.ceil(teacher / rho) - total)

    def chance_kept(p, samples, threshold):
        first = math.ceil(threshold * samples)
        return 1 - sum(math.comb(samples, k) * p**k * (1 - p) ** (samples - k) for k in range(first))

    assert check("stray_tokens")(stray_tokens) == "stray_tokens is right."
    assert check("chance_kept")(chance_kept) == "chance_kept is right."


def test_the_reference_of_kept_is_the_packages_filter():
    def kept(given, threshold):
        rates = [Rate(Problem(str(i), "mine", "2+2?", "4"), *counts) for i, counts in enumerate(given)]
        return [int(p.id) for p in keep(rates, threshold)]

    assert kept([(10, 10), (5, 10), (4, 10), (0, 0), (3, 8), (8, 16)], 0.5) == [0, 1, 5]
    assert check("kept")(kept) == "kept is right."


def test_samples_needed():
    assert check("samples_needed")(36) == "samples_needed is right."  # 1.13 % with 34, 0.93 % with 36
    for wrong, hint in ((10, "15.0 of 100"), (60, "fewer will do"), (35, "an even number")):
        with pytest.raises(NotYet, match=hint):
            check("samples_needed")(wrong)
