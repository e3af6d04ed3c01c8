r"""Are two answers the same? What that means depends on the kind of answer.

- ``expression``, ``number``: equal values, whatever the spelling; a number within a tolerance. Lists without brackets
  are compared like ``several``.
- ``several``: as many answers as the reference has, in any order.
- ``letter``: the letter of an option, alone or before its text.
- ``text``: words without regard to case, quotes and brackets; of a list, every entry in its place.

Both sides are written in one spelling (``normalise.py``). Numbers are compared exactly (``quantities.py``). The rest is
for math-verify (``verifier.py``). ``benchmarks/grading_forms.py`` counts what is accepted.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise

from relaylab.tasks import verifier
from relaylab.tasks.normalise import SMALL_NUMBERS, TEXT, normalise, spaces
from relaylab.tasks.quantities import Quantity, agree, compound, read_quantity, read_unit, split_unit, unit_ratio
from relaylab.tasks.verifier import Reason

_PLAIN = re.compile(r"-?\d{1,40}(?:\.\d{1,40})?", re.ASCII)
_WORDS = re.compile(r"(?:\\text\{)?\s*((?:an? |the )?[A-Za-z]{3,}(?:[ -][A-Za-z]+)*)\s*\}?")
_ATOM = r"(?:\\(?:text|vec|hat|mathbf|overline)\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z])(?:_(?:\{[^{}]*\}|\w))?'*"
_NAMED = re.compile(
    rf"((?:(?:{_ATOM}|\|)\s*){{1,6}}(?:\([\w,\s\\]*\))?|\((?:{_ATOM}\s*,\s*){{1,5}}{_ATOM}\))\s*(?:=|\\approx|\\in(?![A-Za-z]))\s*"
)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])")
_MATRIX = re.compile(r"\(?\\begin\{(?:[bp]?matrix|array)\}(?:\{[c|lr]*\})?([^&]*)\\end\{(?:[bp]?matrix|array)\}\)?")
_BASED = re.compile(
    r"\(?(\d[0-9A-Z]*)\)?\s*(?:_\s*\{?\s*\(?(?:\\text\{)?\s*(\w+)\s*\}?\)?\s*\}?"
    r"|(?:\\text\{)?\s*\(?\s*(?:in )?base(?:\s|-|\\text\{|\}|_)*(\w+)\s*\)?\s*\}?)"
)
_CONGRUENCE = re.compile(
    r"(?:[^\\]{1,20}\\equiv\s*)?(-?\d+(?:\s*,\s*-?\d+)*)\s*\(?\s*(?:\\[pb]?mod|mod|\\text\{\s*\(?mod\s*\)?\s*\})"
    r"\s*(?:\{(\d+)\}|(\d+))\s*\)?"
)
_LETTER = re.compile(
    r"(?:(?:the )?(?:final |correct )?(?:option|choice|answer)(?: is)?\s*+:?\s*+){0,3}+"
    r"[(\[]?\s*+([A-Za-z])\s*+(?:[)\]]?[.:]?|[)\].:]\s*+(?!(?:and|or)\b)[^\s,;&/].*)",
    re.DOTALL | re.IGNORECASE,
)
_QUOTES = str.maketrans(dict.fromkeys("\"'`\u2018\u2019\u201c\u201d*"))


def compare(written: str, answer: str, *, kind: str = "expression", unit: str = "", tolerance: float = 0.0) -> Reason:
    r"""Whether an answer is that of the reference.

    Args:
        written: what the box holds.
        answer: the reference.
        kind: see above.
        unit: of the reference, if it is not written there.
        tolerance: of a number, absolute.

    >>> compare("3 < x", r"(3, \infty)"), compare("10 million", "10", kind="number")
    ('equal', 'unequal')
    """
    if kind in ("letter", "text"):
        return (_letter if kind == "letter" else _text)(written, answer)
    if _PLAIN.fullmatch(written) and _PLAIN.fullmatch(answer):  # the common case, at once
        return _reason(abs(Fraction(written) - Fraction(answer)) <= Fraction(tolerance))
    return _expression(written, answer, unit, tolerance, kind == "number")


KINDS = ("expression", "number", "several", "letter", "text")


def _reason(equal: bool) -> Reason:
    return "equal" if equal else "unequal"


@lru_cache(maxsize=4096)
def _expression(written: str, answer: str, unit: str, tolerance: float, is_number: bool) -> Reason:
    if re.fullmatch(r"\\text\{\s*\(?[A-Z]\)?\s*\}|\([A-Z]\)", answer.strip("$ .")):
        return _letter(written, answer)
    ours, theirs = normalise(written), normalise(answer)
    if (more := _count(ours) - _count(theirs)) < 0:  # the commas of `100,200` beside `100, 200` are a list's
        ours = normalise(_spaced(written))
    elif more > 0 and not is_number and _squeezed(ours) == _squeezed(normalise(_spaced(answer))):
        return "equal"  # a reference is read as a list only where the answer is this very list
    ours, theirs = _unnamed(ours, theirs)
    ours, theirs = _as_set(ours, theirs), _as_set(theirs, ours)
    left, right = map(_answers, (ours, theirs))
    if not right:
        return "unparsable"
    if len(left) == len(right) == 1 or _brackets(theirs):
        return _single(ours, theirs, unit, tolerance)
    if len(left) != len(right):
        return "unequal"
    return _matched(left, right, lambda a, b: _single(a, b, unit, tolerance))


def _answers(text: str) -> list[str]:
    return [text] if compound(text) else split_answers(text)


def _count(text: str) -> int:
    """How many answers or entries a text has."""
    return len(entries[1]) if (entries := _brackets(text)) else len(_answers(text))


def _spaced(text: str) -> str:
    """Commas that could group the digits of a number, as those of a list."""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", ", ", text)


# One answer -----------------------------------------------------------------------------------------------------------


def _single(written: str, answer: str, unit: str, tolerance: float) -> Reason:
    written, answer = _unnamed(written, answer)
    if _squeezed(written) == _squeezed(answer) != "":
        return "equal"  # some references take seconds to be compared with themselves
    if (words := _WORDS.fullmatch(answer)) and (ours := _WORDS.fullmatch(written)):
        return _reason(len({re.sub("^(?:an?|the) ", "", side[1].lower()) for side in (words, ours)}) == 1)
    if b := _congruence(answer):
        return _reason(_congruence(written) == b)
    if b := _based(answer):  # math-verify reads 52_9 as 52
        a = _based(written) or (written, b[1])
        return _reason(a == b)
    if entries := _entries(written, answer):
        if isinstance(entries, str):
            return entries
        for a, b in zip(*entries, strict=True):
            if (reason := _single(a, b, unit, tolerance)) != "equal":
                return reason
        return "equal"
    return _value(written, answer, unit, tolerance)


def _value(written: str, answer: str, unit: str, tolerance: float) -> Reason:
    if unit.strip(" $\\") == "%":
        written, answer, unit = (re.sub(r"\\?%", "", side) for side in (written, answer, ""))
    b = read_quantity(answer, loose=False)
    a = read_quantity(written, loose=b is not None)
    if b is None and _same_quantity(written, answer, tolerance):
        return "equal"
    if b is not None and b.unit is None and unit:
        b = Quantity(b.values, read_unit(normalise(unit)), plain=False)
    if a is not None and b is not None:
        return _reason(agree(a, b, Fraction(tolerance)))
    (ours, ours_unit), (theirs, their_unit) = split_unit(written, loose=b is not None), split_unit(answer)
    ratio = unit_ratio(ours_unit, their_unit)
    if ratio is None:
        return "unequal"
    if ours_unit and ours_unit.dims == {"percent": 1} and their_unit is None:
        ratio /= 100
    if ratio != 1:
        ours = rf"({ours}) \cdot \frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
    if _squeezed(ours) == _squeezed(theirs) != "":
        return "equal"
    if re.search(r"\d \d", ours):  # math-verify reads `5 40` as 45
        return "unparsable"
    return verifier.ask_math_verify(ours, theirs, tolerance)


def _same_quantity(written: str, answer: str, tolerance: float) -> bool:
    """Whether both are numbers with known units and equal. The letter of ``1600 m`` is a unit beside ``1.6 km``.

    Beside an answer without a unit it may be a variable.
    """
    a, b = read_quantity(written), read_quantity(answer)
    if a is None or b is None or not all(side.unit and side.unit.dims for side in (a, b)):
        return False
    return agree(a, b, Fraction(tolerance))


def _squeezed(text: str) -> str:
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _unnamed(written: str, answer: str) -> tuple[str, str]:
    """Both without the name of what they are the value of (`x = 5`), unless the names differ or are part of it."""
    (name, ours), (their_name, theirs) = map(_named, (written, answer))
    if name and their_name:
        return (ours, theirs) if _initial(name) == _initial(their_name) else (written, answer)
    if name and "=" not in answer:
        return ours, answer
    if their_name and "=" not in written:
        return written, theirs
    return written, answer


def _named(text: str) -> tuple[str, str]:
    found = _NAMED.match(text)
    rest = text[found.end() :] if found else ""
    return (found[1], rest) if found and rest and not re.search(r"=|\\equiv", rest) else ("", text)


def _initial(name: str) -> str:
    return re.sub(r"\\(?:text|vec|hat|mathbf|overline)?|[{}(|\s]", "", name)[:1].lower()


def _congruence(text: str) -> tuple[frozenset[int], int] | None:
    found = _CONGRUENCE.fullmatch(text)
    if found is None or not (modulus := int(found[2] or found[3])):
        return None
    return frozenset(int(residue) % modulus for residue in found[1].split(",")), modulus


def _based(text: str) -> tuple[str, str] | None:
    found = _BASED.fullmatch(text)
    if found is None:
        return None
    base = (found[2] or found[3]).lower()
    return found[1], str(SMALL_NUMBERS.index(base)) if base in SMALL_NUMBERS else base


# Brackets, sets and lists ---------------------------------------------------------------------------------------------


def _entries(written: str, answer: str) -> Reason | tuple[list[str], list[str]] | None:
    """The entries of two tuples, vectors or intervals; a reason if they cannot be the same."""
    if _brackets(answer):
        written = _tuple(written)
    elif _brackets(written):
        answer = _tuple(answer)
    if not (theirs := _brackets(answer)):
        return None
    if (ours := _brackets(written)) is None:
        if written.startswith(r"\{"):
            return "unequal"
        if r"\infty" in answer:
            return None
        ours = theirs[0], _parts(written)
    same = ours[0] == theirs[0] and len(ours[1]) == len(theirs[1])
    return (ours[1], theirs[1]) if same else "unequal"


def _brackets(text: str) -> tuple[str, list[str]] | None:
    """The two brackets and at least two entries of a text that is one pair of brackets."""
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or 0 in _depths(text)[:-1]:
        return None
    parts = _parts(text[1:-1])
    return (text[0] + text[-1], parts) if len(parts) > 1 else None


def _tuple(text: str) -> str:
    """A matrix of one column as a tuple; any other text as it is."""
    found = _MATRIX.fullmatch(text)
    return "(" + ",".join(found[1].split(r"\\")) + ")" if found else text


def _parts(text: str) -> list[str]:
    """The text cut at commas and semicolons outside brackets."""
    cuts = [i for i, (letter, depth) in enumerate(zip(text, _depths(text))) if letter in ",;" and depth == 0]
    parts = [text[a + 1 : b] for a, b in pairwise([-1, *cuts, len(text)])]
    return [" ".join(part.split()) for part in parts if part.strip()]


def _depths(text: str) -> list[int]:
    """In how many brackets the text is after each letter."""
    return list(accumulate((letter in "([{") - (letter in ")]}") for letter in text))


def split_answers(text: str) -> list[str]:
    r"""The single answers of a list: cut at commas, semicolons, *and* and *or* outside brackets; ± gives two.

    >>> split_answers(r"\{1, (2,3)\}"), split_answers(r"x=1 \text{ or } x=2"), split_answers(r"1 \pm \sqrt{2}")
    (['1', '(2,3)'], ['x=1', 'x=2'], ['1 + \\sqrt{2}', '1 - \\sqrt{2}'])
    """
    text = re.sub(r"\\text\{[\s,]*(?:and|or)[\s,]*\}|\b(?:and|or)\b", ",", text)
    if inner := re.fullmatch(r"\\\{(.*)\\\}", text.strip(), re.DOTALL):
        text = inner[1]
    return _without_dots([each for part in _parts(text) for each in _both_signs(part)])


def _both_signs(part: str) -> list[str]:
    if not re.search(r"\\pm(?![A-Za-z])", part):
        return [part]
    signs = ({"p": a, "m": b} for a, b in ("+-", "-+"))
    both = (re.sub(r"\\([pm])[mp](?![A-Za-z])", lambda m, sign=sign: sign[m[1]], part) for sign in signs)
    return [re.sub(r"(?<=[(,])\s*\+\s*", "", each).strip().removeprefix("+").strip() for each in both]


def _without_dots(parts: list[str]) -> list[str]:
    r"""`1, 2, \ldots, 10` in full; of `1, 2, 3, \ldots, n` the first two, the dots and the end."""
    places = [i for i, part in enumerate(parts) if part.strip() == r"\ldots"]
    if len(places) != 1 or not (begin := parts[: places[0]]) or not all(re.fullmatch(r"-?\d{1,9}", p) for p in begin):
        return parts
    numbers, end = [int(part) for part in begin], parts[places[0] + 1 :]
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    if not step or any(b - a != step for a, b in pairwise(numbers)):
        return parts
    if end and all(re.fullmatch(r"-?\d{1,9}", part) for part in end):
        whole = range(numbers[0], int(end[-1]) + (1 if step > 0 else -1), step)
        if len(whole) <= 1000 and len(whole) and whole[-1] == int(end[-1]):
            return [*map(str, whole)]
    return [str(numbers[0]), str(numbers[0] + step), r"\ldots", *end[-1:]]


def _as_set(text: str, other: str) -> str:
    """Inequalities of one name as a union of intervals, if the other side is a set; `]0, 1]` as `(0, 1]`."""
    text = re.sub(r"^\\\{\s*[A-Za-z]\s*(?::|\||\\mid(?![A-Za-z]))(.*)\\\}$", r"\1", text)
    pieces = re.split(r"\\cup", text)
    if all(re.fullmatch(r"\s*[\[\](].*,.*[\[\])]\s*|\s*\\\{.*", piece) for piece in pieces):
        return r" \cup ".join(re.sub(r"\[$", ")", re.sub(r"^\]", "(", piece.strip())) for piece in pieces)
    if not _RELATION.search(text) or _RELATION.search(other) or not re.search(r"[\[\](]|\\cup|\\emptyset|\\\{", other):
        return text
    pieces = [_interval(piece) for piece in re.split(r"\\text\{\s*or\s*\}|\bor\b|\\cup|,", text)]
    return text if None in pieces else r" \cup ".join(map(str, pieces))


def _interval(text: str) -> str | None:
    name = r"(?:[A-Za-z]|\\(?:theta|alpha|beta|lambda|mu|phi|omega))(?:_\{?\w+\}?)?"
    sides = [side.strip() for side in re.split(r"(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|=)", text)]
    if len(sides) == 3 and re.fullmatch(name, sides[2]):
        turned = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
        sides = [sides[2], turned.get(sides[1], sides[1]), sides[0]]
    match sides:
        case [x, "=", a] if re.fullmatch(name, x):
            return rf"\{{{a}\}}"
        case [x, r"\ne", a] if re.fullmatch(name, x):
            return rf"(-\infty,{a}) \cup ({a},\infty)"
        case [x, sign, a] if re.fullmatch(name, x):
            if sign in ("<", r"\le"):
                return rf"(-\infty,{a}{']' if sign != '<' else ')'}"
            return rf"{'[' if sign != '>' else '('}{a},\infty)"
        case [a, one, x, two, b] if re.fullmatch(name, x) and {one, two} <= {"<", r"\le"}:
            return f"{'(' if one == '<' else '['}{a},{b}{')' if two == '<' else ']'}"
        case [b, one, x, two, a] if re.fullmatch(name, x) and {one, two} <= {">", r"\ge"}:
            return f"{'(' if two == '>' else '['}{a},{b}{')' if one == '>' else ']'}"
    return None


def _matched(ours: list[str], theirs: list[str], same: Callable[[str, str], Reason]) -> Reason:
    """Whether the two lists, of one length, can be paired off. Equal texts are, before anything is compared."""
    rest, left = (list((Counter(a) - Counter(b)).elements()) for a, b in ((ours, theirs), (theirs, ours)))
    if not rest:
        return "equal"
    end = time.monotonic() + verifier.WALL_SECONDS  # each comparison has its bound; this is the one of all together
    edges = []
    for part in rest:
        edges.append([])
        for other in left:
            reason = same(part, other)
            if reason == "timeout" or time.monotonic() > end:
                return "timeout"
            edges[-1].append(reason == "equal")
        if not any(edges[-1]):
            return "unequal"
    from scipy.sparse import csr_matrix  # slow to import, and seldom needed
    from scipy.sparse.csgraph import maximum_bipartite_matching

    return _reason(min(maximum_bipartite_matching(csr_matrix(edges))) >= 0)


# Letters and words ----------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    for _ in range(2):  # \text{\textbf{B}}
        text = TEXT.sub(r"\1", text)
    text = spaces(unicodedata.normalize("NFC", text).replace("$", "").replace(r"\_", "_"))
    return " ".join(re.sub(r"[{}\\]", "", text).split())


def _letter(written: str, answer: str) -> Reason:
    found, right = (_LETTER.fullmatch(_plain(side).strip("*")) for side in (written, answer))
    if found is None or right is None:
        return "unparsable"
    return _reason(found[1].upper() == right[1].upper())


def _text(written: str, answer: str) -> Reason:
    if re.fullmatch(r"\([A-Z]\)", answer) and _letter(written, answer) == "equal":
        return "equal"
    a, b = _words(written), _words(answer)
    return _reason(bool(a) and a == b)


def _words(text: str) -> list[Fraction | str]:
    """The entries of a list, or the one of a word, in their order; numbers by value."""
    text = _plain(text).casefold().translate(_QUOTES).strip(" .?")
    if (whole := _number(text)) is not None:
        return [whole]
    if text[:1] in ("[", "(") and text[-1:] in ("]", ")"):
        text = text[1:-1]
    entries = [entry.strip() for entry in text.split(",")]
    return [e if (n := _number(e)) is None else n for e in entries if e]


def _number(word: str) -> Fraction | None:
    if _PLAIN.fullmatch(word):
        return Fraction(word)
    if not re.fullmatch(r"[-\u2212]?[\d.][\d.,/ ^{}]*", word):  # `1 egg` is not `1 spoon`
        return None
    quantity = read_quantity(normalise(word))
    return quantity.values[0] if quantity else None
