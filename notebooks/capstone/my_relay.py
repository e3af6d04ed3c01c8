"""A relay of my own."""

from __future__ import annotations

from collections.abc import Callable


def my_relay(
    student: Callable[[list[str]], str],
    teacher: Callable[[str, int], list[str]],
    max_tokens: int,
    max_calls: int,
) -> list[tuple[str, str]]:
    """Let a student and a teacher write one answer.

    The student writes one token after the other: ``student(tokens)`` gets all tokens so far, whoever wrote them, and
    returns the next one; "" means that it has finished.

    A command is the text ``<call>n</call>``, n from 1 on without leading zeros. Any tokens can make it, and it must
    lie in what the student wrote since the teacher's last token. It is complete with its last character. Then its
    tokens are marked "c", also those that hold a part of it only, and ``teacher(text, n)`` is asked for at most n
    tokens. ``text`` is all text so far without commands. The teacher may return fewer tokens.

    No more than ``max_tokens`` tokens are written, of all three kinds together, so the teacher is asked for what is
    left at most; if nothing is left, it is not asked. After ``max_calls`` answered calls a command is still marked,
    and nobody answers it.

    Args:
        student: Writes the next token.
        teacher: Writes up to n tokens.
        max_tokens: Of the answer.
        max_calls: Answered calls at most.

    Returns:
        Each token and its writer: "s" the student, "c" its commands, "t" the teacher.

    >>> script = ["7*8=", "<call>", "2</", "call>"]
    >>> student = lambda tokens: script[len(tokens)] if len(tokens) < 4 else "." if tokens[-1] == "6" else ""
    >>> for pair in my_relay(student, lambda text, n: ["5", "6", "!"][:n], 20, 1):
    ...     print(*pair)
    7*8= s
    <call> c
    2</ c
    call> c
    5 t
    6 t
    . s
    """


def group_rewards(group: list[tuple[str, bool]]) -> list[float]:
    """The difficulty-aware reward of each rollout of a group (lesson 03).

    A rollout is (source, correct): a letter per token, "s", "c" or "t" as above. It was helped if it has a "t".
    Its ratio is its number of "t", divided by the mean number of tokens that are not "c" in the *other* rollouts,
    and at most 1.

    - Right and helped: 1 - ratio. Right and not helped: 1.5.
    - If some are right, and all of these were helped: a wrong one that was not helped gets -1.
    - If none is right: a helped one gets its ratio.
    - All others get 0.

    >>> group_rewards([("ssss", True), ("sctt", True), ("ssss", False)])
    [1.5, 0.5, 0.0]
    """


def batch_mask(sources: list[str], length: int) -> list[list[int]]:
    """1 for each token that is trained, 0 for the others: a row per rollout, and ``length`` numbers in each.

    The teacher's tokens are not trained, commands are. A shorter rollout is padded on the right, and padding is not
    trained. A longer one is cut.

    >>> batch_mask(["scts", "s"], 3)
    [[1, 1, 0], [1, 0, 0]]
    """


def chosen(rates: dict[str, tuple[int, int, int, int]], low: float, high: float) -> list[str]:
    """The problems to train on: those that the teacher can solve, and the student cannot solve always.

    Args:
        rates: By problem: right answers and answers of the teacher, then the same of the student.
        low: The teacher's rate is at least this. A problem without an answer of the teacher is left out.
        high: The student's rate is at most this. A problem without an answer of the student stays in.

    Returns:
        Their names, in the order of ``rates``.

    >>> chosen({"a": (9, 10, 2, 10), "b": (4, 10, 0, 10), "c": (10, 10, 10, 10)}, 0.5, 0.9)
    ['a']
    """
