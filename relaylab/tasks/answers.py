r"""Is the boxed answer right for *this* problem? What "the same answer" means depends on the kind of answer.

``grading.py`` compares mathematical expressions by math-verify, in a process of its own; everything here ends there, or
in comparisons of plain text and exact fractions that need no bounds. Kinds (``Problem.kind``):

- ``expression``: math-verify, with two repairs: a base is part of a numeral, and ``5 i`` is ``5i``.
- ``number``: exact values first, so that ``4e33`` is ``4 \times 10^{33}`` and tiny numbers are not all zero; a unit may
  follow; within ``Problem.tolerance``. What is no plain number is compared as an expression.
- ``several``: as many answers as the reference has, in any order, each compared like a number.
- ``letter``: the letter of an option, alone or before its text.
- ``text``: words without regard to case, quotes and brackets; of a list, every entry in its place.

The last box counts, and only that. No text of a model raises or hangs; ``benchmarks/grading_forms.py`` tabulates what
is accepted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import count

from relaylab.tasks.grading import MAX_LENGTH, WALL_SECONDS, Grade, Reason, extract_boxed, grade_details
from relaylab.tasks.suites import Problem

SPACE = r"(?:\\[,;:! ]|~|\s)*+"  # possessive, like all that is repeated here: no text takes more than linear time
SPACES = re.compile(r"\\[,;:! ]|~|\\quad|\\qquad")
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname|rm|bf)\s*\{([^{}]*)\}")
AND = re.compile(r"\b(?:and|or)\b")


def grade_problem(text: str, problem: Problem) -> bool:
    r"""Whether the last box of ``text`` answers ``problem``. False, never an exception, whatever the text.

    >>> p = Problem("a", "mine", "How far, in m?", "4e33", kind="number")
    >>> grade_problem(r"So \boxed{4 \times 10^{33} \text{ m}}.", p), grade_problem(r"\boxed{4}", p)
    (True, False)

    Raises ValueError for an unknown kind of answer, RuntimeError where math-verify cannot be imported.
    """
    return grade_problem_details(text, problem).correct


def grade_problem_details(text: str, problem: Problem) -> Grade:
    r"""``grade_problem`` with the extracted answer and the reason (``grading.Grade``).

    >>> grade_problem_details(r"\boxed{(b)}", Problem("a", "mine", "A or B?", "B", kind="letter"))
    Grade(correct=True, extracted='(b)', reason='equal')
    """
    compare = _KINDS.get(problem.kind)
    if compare is None:
        raise ValueError(f"{problem.id}: unknown kind of answer {problem.kind!r}; it is one of {', '.join(_KINDS)}")
    extracted = extract_boxed(text)
    if extracted is None:
        reason: Reason = "no_box"
    elif max(len(extracted), len(problem.answer)) > MAX_LENGTH:
        reason = "too_long"
    else:
        reason = compare(extracted, problem)
    return Grade(reason == "equal", extracted, reason)


# Expressions ----------------------------------------------------------------------------------------------------------

_BASED = re.compile(r"\$?\s*([0-9A-Z]+)\s*_\s*\{?\s*(?:\\text\{)?\s*(\w+)\s*\}{0,2}\s*\$?")
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d{1,4})(?![\w.])")


def _expression(written: str, problem: Problem) -> Reason:
    return _verified(written, problem.answer)


def _verified(written: str, answer: str) -> Reason:
    # math-verify reads 52_9 as 52, whatever the base: two numerals with a base are equal where both parts are.
    if (a := _BASED.fullmatch(written)) and (b := _BASED.fullmatch(answer)):
        return "equal" if a.groups() == b.groups() else "unequal"
    # And `5 i` as 5 with a unit.
    written, answer = (re.sub(r"(?<=\d)\s+(?=i\b)", "", side).strip() for side in (written, answer))
    if written == answer != "":
        return "equal"  # some references take seconds to be compared with themselves
    return grade_details(rf"\boxed{{{written}}}", answer).reason


# Numbers --------------------------------------------------------------------------------------------------------------

_MANTISSA = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_VALUE = re.compile(
    rf"(?P<sign>[-+\u2212]?){SPACE}"
    rf"(?:\\[dt]?frac\s*(?:\{{(?P<top>-?\d+)\}}\s*\{{(?P<under>\d+)\}}|(?P<t>\d)\s*(?P<u>\d))"
    rf"|10\s*\^\s*\{{?\s*(?P<power>[-+\u2212]?\d{{1,4}})\s*\}}?"
    rf"|(?P<a>\d+){SPACE}/{SPACE}(?P<b>\d+)"
    rf"|(?P<mantissa>{_MANTISSA})"
    rf"(?:[eE](?P<e>[+-]?\d{{1,4}})|{SPACE}(?:\\times|\\cdot|\*|\u00d7|x){SPACE}10{SPACE}"
    rf"(?:\^|\*\*){SPACE}\{{?\s*(?P<ten>[-+\u2212]?\d{{1,4}})\s*\}}?)?)"
)
# What may follow a number: units, and words of three letters and more, neither functions nor factors; powers of them.
_WORD = (
    r"(?!(?:pi|tau|phi|theta|sqrt|sin|cos|tan|cot|log|exp|and|mod|over|choose|infty|hundred|thousand|million|billion)"
    r"(?![A-Za-z]))"
    r"(?:[A-Za-z]{3,}+|(?:cm|mm|km|nm|kg|mg|ml|mL|ft|in|lb|oz|hr|ms|Hz|eV|Pa|pc|AU)(?![A-Za-z]))"
)
_UNIT = re.compile(
    rf"(?:{SPACE}(?:[/*.\u00b7]|\\cdot|\\%|%|\\?[$\u20ac]|\^?\s*\{{?\s*\\circ\s*\}}?|\u00b0"
    rf"|(?:\\(?:text|mathrm|mbox|rm|operatorname)\s*\{{[^{{}}]*\}}|{_WORD})(?:\s*\^\s*\{{?-?\d\}}?)?))*+{SPACE}"
)
_LEFT = re.compile(rf"(?:\\?\$|\\?[A-Za-z](?:_\{{?\w+\}}?)?{SPACE}(?:=|\\approx){SPACE}|\\left|{SPACE}\\\()*{SPACE}")


def read_number(text: str, *, unit: str = "") -> Fraction | None:
    r"""The exact value of a plain number, with or without a unit, or None. A percentage is a hundredth of its number.

    >>> read_number(r"\$1,024.50"), read_number("3 \\times 10^{-2}"), read_number(r"12.5\%"), read_number("2x")
    (Fraction(2049, 2), Fraction(3, 100), Fraction(1, 8), None)

    With ``unit="%"`` the number is a percentage already, and its sign says nothing.
    """
    text = re.sub(r",\\!\s*|\{,\}", ",", text).strip().strip("$").rstrip(".").strip()
    start = _LEFT.match(text).end()
    value = _VALUE.match(text, start)
    if value is None:
        return None
    rest = text[value.end() :]
    named = bool(unit) and rest.strip().strip("$") == unit.strip()
    if not named and not _UNIT.fullmatch(rest):
        return None
    number = _fraction(value)
    return number / 100 if number is not None and "%" in rest and unit != "%" else number


def _fraction(value: re.Match[str]) -> Fraction | None:
    part = value.groupdict()
    top, under = part["top"] or part["t"] or part["a"], part["under"] or part["u"] or part["b"]
    if top is not None:
        if int(under) == 0:
            return None
        number = Fraction(int(top), int(under))
    elif part["power"] is not None:
        number = _power(part["power"])
    else:
        exponent = part["e"] or part["ten"] or "0"
        number = Fraction(part["mantissa"].replace(",", "").rstrip(".")) * _power(exponent)
    return -number if value["sign"] in ("-", "\u2212") else number


def _power(exponent: str) -> Fraction:
    return Fraction(10) ** int(exponent.replace("\u2212", "-"))


def _number(written: str, problem: Problem) -> Reason:
    return _compare_numbers(written, problem.answer, problem)


def _compare_numbers(written: str, answer: str, problem: Problem) -> Reason:
    a, b = read_number(written, unit=problem.unit), read_number(answer, unit=problem.unit)
    if a is not None and b is not None:
        return "equal" if abs(a - b) <= Fraction(problem.tolerance) else "unequal"
    # math-verify reads `4e33` as a product with Euler's number, and rounds to six places: tiny numbers are scaled up.
    written, answer = (_SCIENTIFIC.sub(r"\1 \\times 10^{\2}", side) for side in (written, answer))
    if b and abs(b) < Fraction(1, 1000):
        places = next(k for k in count(3) if abs(b) * 10**k >= 1)
        written, answer = rf"({written}) \cdot 10^{{{places}}}", str(float(b * 10**places))
    return _verified(written, answer)


# Several answers ------------------------------------------------------------------------------------------------------


def _several(written: str, problem: Problem) -> Reason:
    ours, theirs = split_answers(written), split_answers(problem.answer)
    if len(ours) != len(theirs):
        return "unequal"
    return _matched(ours, theirs, lambda a, b: _compare_numbers(*_sides(a, b), problem))


def split_answers(text: str) -> list[str]:
    r"""The single answers of a list: cut at commas, semicolons, *and* and *or* outside brackets; ± gives two.

    >>> split_answers(r"\{1, (2,3)\}"), split_answers(r"x=1 \text{ or } x=2"), split_answers(r"1 \pm \sqrt{2}")
    (['1', '(2,3)'], ['x=1', 'x=2'], ['1 + \\sqrt{2}', '1 - \\sqrt{2}'])
    """
    text = TEXT.sub(lambda m: f" {m[1]} ", text.replace("$", " ").replace(r"\left", "").replace(r"\right", ""))
    text = AND.sub(",", SPACES.sub(" ", text)).strip()
    if inner := re.fullmatch(r"\\\{(.*)\\\}", text, re.DOTALL):
        text = inner[1]
    parts, depth, begin = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter in ",;" and depth == 0:
            parts.append(text[begin:i])
            begin = i + 1
    parts = [" ".join(part.split()) for part in [*parts, text[begin:]]]
    return [each for part in parts if part for each in _signs(part)]


def _signs(part: str) -> list[str]:
    if r"\pm" not in part and "\u00b1" not in part:
        return [part]
    part = part.replace("\u00b1", r"\pm")
    both = (part.replace(r"\pm", a).replace(r"\mp", b) for a, b in ("+-", "-+"))
    return [re.sub(r"(?<=[(,\s])\+ *(?=\d)", "", each).removeprefix("+").strip() for each in both]


def _sides(a: str, b: str) -> tuple[str, str]:
    """Two answers to compare: where one of them alone names what it is the value of (`x = 5`), its name goes."""
    if (a.count("="), b.count("=")) in ((1, 0), (0, 1)):
        a, b = (side.rpartition("=")[2].strip() for side in (a, b))
    return a, b


def _matched(ours: list[str], theirs: list[str], compare: Callable[[str, str], Reason]) -> Reason:
    """Whether the two lists, of one length, can be paired off. Equal texts are, before anything is compared."""
    left = list(theirs)
    for part in ours:
        if part in left:
            left.remove(part)
    rest = list(ours)
    for part in theirs:
        if part in rest:
            rest.remove(part)
    if not rest:
        return "equal"
    end = time.monotonic() + WALL_SECONDS  # each comparison has its bound; this is the one of all together
    edges = []
    for part in rest:
        edges.append([])
        for other in left:
            reason = compare(part, other)
            if reason == "timeout" or time.monotonic() > end:
                return "timeout"
            edges[-1].append(reason == "equal")
        if not any(edges[-1]):
            return "unequal"
    from scipy.sparse import csr_matrix  # slow to import, and seldom needed
    from scipy.sparse.csgraph import maximum_bipartite_matching

    pairs = maximum_bipartite_matching(csr_matrix(edges))
    return "equal" if min(pairs) >= 0 else "unequal"


# Letters and words ----------------------------------------------------------------------------------------------------

_LETTER = re.compile(r"(?:(?:option|choice|answer)\s+)?[(\[]?\s*([A-Za-z])\s*(?:[)\]]?[.:]?|[)\].:]\s*\S.*)", re.DOTALL)
_QUOTES = str.maketrans(dict.fromkeys("\"'`\u2018\u2019\u201c\u201d*"))


def _plain(text: str) -> str:
    for _ in range(2):  # \text{\textbf{B}}
        text = TEXT.sub(r"\1", text)
    text = SPACES.sub(" ", text.replace("$", "").replace(r"\_", "_"))
    return " ".join(text.replace("{", "").replace("}", "").replace("\\", "").split())


def _letter(written: str, problem: Problem) -> Reason:
    found, right = (_LETTER.fullmatch(_plain(side)) for side in (written, problem.answer))
    if found is None or right is None:
        return "unparsable"
    return "equal" if found[1].upper() == right[1].upper() else "unequal"


def _text(written: str, problem: Problem) -> Reason:
    a, b = _words(written), _words(problem.answer)
    return "equal" if a and a == b else "unequal"


def _words(text: str) -> list[Fraction | str]:
    """The entries of a list, or the one of a word, in their order; numbers by value."""
    text = _plain(text).casefold().translate(_QUOTES).strip(" .?")
    if (whole := _value(text)) is not None:
        return [whole]
    if text[:1] in ("[", "(") and text[-1:] in ("]", ")"):
        text = text[1:-1]
    entries = [entry.strip() for entry in text.split(",")]
    return [e if (n := _value(e)) is None else n for e in entries if e]


def _value(word: str) -> Fraction | None:
    return read_number(word) if word[-1:].isdigit() else None  # `1 egg` is not `1 spoon`


_KINDS: dict[str, Callable[[str, Problem], Reason]] = {
    "expression": _expression,
    "number": _number,
    "several": _several,
    "letter": _letter,
    "text": _text,
}
