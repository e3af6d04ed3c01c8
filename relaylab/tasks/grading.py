r"""Is the answer in the last ``\boxed{...}`` right?

    text -> extract_boxed -> normalise -> compare by kind -> math-verify where a rule does not decide

The last box counts, and only that. No text of a model raises or hangs. Commands of the student are text like any other
here: grade ``Trace.teacher_view``, not ``Trace.text``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from relaylab.tasks.compare import KINDS, compare
from relaylab.tasks.suites import AnswerKind, Problem
from relaylab.tasks.verifier import Reason

MAX_LENGTH = 2000  # characters of an answer; the longest reference of the benchmarks has 255


@dataclass(frozen=True, slots=True)
class Grade:
    """Whether an answer is right, what was read from the text, and why.

    Args:
        correct: whether ``reason`` is ``equal``.
        extracted: what the box holds.
        reason: ``equal``; ``unequal``; ``no_box`` (no complete box in the text); ``unparsable`` (one of the two is no
            more than a string, and the strings differ); ``too_long`` (over ``MAX_LENGTH``); ``timeout``.
    """

    correct: bool
    extracted: str | None
    reason: Reason


# Every alternative that begins matches, so no character is read twice: the scan is linear for any text.
_TOKEN = re.compile(
    r"\\+(?:(?P<box>(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|(?P<bare>[-+]?\d(?:[\d.,/]*\d)?|[A-Za-z](?![A-Za-z])))?)|[{}])?"
    r"|[{}]"
)


def extract_boxed(text: str) -> str | None:
    r"""What the last complete ``\boxed{...}`` or ``\fbox{...}`` holds, or None. Time is linear in the text's length.

    Of nested boxes it is the inner one. A box without braces may hold a number or a letter, as in ``\boxed 5``.

    >>> extract_boxed(r"First \boxed{1}, no: \boxed{\frac{1}{2}}. Or \boxed{3")
    '\\frac{1}{2}'
    """
    found, found_at = None, -1
    opened: list[tuple[int, int]] = []  # of each open brace: where its box began (-1: no box), where its content begins
    for match in _TOKEN.finditer(text):
        token, box = match[0], match["box"]
        if match["bare"] is not None and match.start() > found_at:
            found, found_at = match["bare"], match.start()
        if box is None and len(token) % 2 == 0:
            continue  # an odd number of backslashes escapes the brace
        if token[-1] == "{":
            opened.append((-1 if box is None else match.start(), match.end()))
        elif token[-1] == "}" and opened:
            start, content = opened.pop()
            if start > found_at:
                found, found_at = text[content : match.end() - 1], start
    return found


def grade_problem(text: str, problem: Problem) -> bool:
    r"""Whether the last box of ``text`` answers ``problem``, by its kind of answer, its unit and its tolerance.

    False, never an exception, whatever the text.

    >>> p = Problem("a", "mine", "How far, in m?", "4e33", kind="number")
    >>> grade_problem(r"So \boxed{4 \times 10^{33} \text{ m}}.", p), grade_problem(r"\boxed{4}", p)
    (True, False)

    Raises:
        ValueError: for an unknown kind of answer, and for a tolerance that is negative or not finite.
        RuntimeError: if math-verify is needed and cannot be imported.
    """
    settings = {"kind": problem.kind, "unit": problem.unit, "tolerance": problem.tolerance}
    try:
        return grade_details(text, problem.answer, **settings).correct
    except ValueError as error:
        raise ValueError(f"{problem.id}: {error}") from None


def grade(text: str, answer: str) -> bool:
    r"""Whether the last box of ``text`` holds ``answer``, an expression. Errors are those of ``grade_problem``.

    >>> grade(r"So it is \boxed{2^{10}}.", "1,024"), grade(r"\boxed{((}", "5"), grade("It is 5.", "5")
    (True, False, False)
    """
    return grade_details(text, answer).correct


def grade_details(
    text: str, answer: str, *, kind: AnswerKind = "expression", unit: str = "", tolerance: float = 0.0
) -> Grade:
    r"""``grade`` with the extracted answer and the reason, for an answer of any kind.

    Args:
        text: of a model.
        answer: the reference.
        kind: how answers are compared (``compare.py``).
        unit: of the reference, if it is not written there.
        tolerance: of a number, absolute.

    Errors are those of ``grade_problem``.

    >>> grade_details(r"\boxed{\frac12}", "0.5")
    Grade(correct=True, extracted='\\frac12', reason='equal')
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of answer {kind!r}; it is one of {', '.join(KINDS)}")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"the tolerance is {tolerance}; it must be finite, and at least 0")
    extracted = extract_boxed(text)
    if extracted is None:
        reason: Reason = "no_box"
    elif max(len(extracted), len(answer)) > MAX_LENGTH:
        reason = "too_long"
    elif not extracted.strip() or not answer.strip():
        reason = "unparsable"
    else:
        reason = compare(extracted, answer, kind=kind, unit=unit, tolerance=tolerance)
    return Grade(reason == "equal", extracted, reason)
