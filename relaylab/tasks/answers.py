"""Does a text answer *this* problem, by its kind of answer, its unit and its tolerance?"""

from __future__ import annotations

from relaylab.tasks.compare import KINDS
from relaylab.tasks.grading import Grade, grade_details
from relaylab.tasks.suites import Problem


def grade_problem(text: str, problem: Problem) -> bool:
    r"""Whether the last box of ``text`` answers ``problem``. False, never an exception, whatever the text.

    >>> p = Problem("a", "mine", "How far, in m?", "4e33", kind="number")
    >>> grade_problem(r"So \boxed{4 \times 10^{33} \text{ m}}.", p), grade_problem(r"\boxed{4}", p)
    (True, False)

    Raises:
        ValueError: for an unknown kind of answer.
        RuntimeError: if math-verify is needed and cannot be imported.
    """
    return grade_problem_details(text, problem).correct


def grade_problem_details(text: str, problem: Problem) -> Grade:
    r"""``grade_problem`` with the extracted answer and the reason (``grading.Grade``).

    >>> grade_problem_details(r"\boxed{(b)}", Problem("a", "mine", "A or B?", "B", kind="letter"))
    Grade(correct=True, extracted='(b)', reason='equal')
    """
    if problem.kind not in KINDS:
        raise ValueError(f"{problem.id}: unknown kind of answer {problem.kind!r}; it is one of {', '.join(KINDS)}")
    return grade_details(text, problem.answer, kind=problem.kind, unit=problem.unit, tolerance=problem.tolerance)
