r"""Numbers with their units, exactly. All functions take texts that ``normalise`` has written.

Units are compared if both sides have one: 15 cm is not 15 m, and 1.6 km is 1600 m. A reference without a unit accepts
any. A percentage is a hundredth of its number, or equals a plain reference above 1 (*what percentage ...?*). Of a
reference whose own unit is percent (``unit="%"``) the number itself is asked for: 50 accepts 50 and 50 %, and not 0.5.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

# Each dimension: names of a unit and its size.
_TABLE = {
    "length": "m meter metre 1, cm centimeter centimetre 1/100, mm millimeter millimetre 1/1000, km kilometer "
    "kilometre 1000, in inch inches 127/5000, ft foot feet 381/1250, yd yard 1143/1250, mi mile miles 201168/125",
    "time": "s sec second 1, ms millisecond 1/1000, min minute 60, h hr hour 3600, day 86400, week 604800",
    "months": "month 1, yr year 12",
    "mass": "g gram 1, kg kilogram 1000, mg milligram 1/1000, lb lbs pound 45359237/100000, oz ounce 45359237/1600000",
    "volume": "L l liter litre 1, mL ml milliliter millilitre 1/1000",
    "dollars": r"\$ dollar usd USD 1, cent 1/100",
    "euros": "\u20ac euro eur EUR 1",
    "sterling": "\u00a3 gbp GBP 1",
    "rupees": "\u20b9 rs Rs rupee 1",
    "yen": "\u00a5 yen JPY 1",
    "angle": r"^\circ deg degree 1",
    "radians": "rad radian 1",
    "percent": r"% \% percent percentage pct 1/100",
}
_KNOWN = {
    name: (dimension, Fraction(entry.split()[-1]))
    for dimension, entries in _TABLE.items()
    for entry in entries.split(",")
    for name in entry.split()[:-1]
}
_NAMES = "|".join(sorted((name for name in _KNOWN if name[0].isalpha()), key=len, reverse=True))
_WORD = rf"(?:(?:{_NAMES})s?|square|cubic|sq|per)"
_COINS = r"\u20ac\u00a3\u20b9\u00a5"
_SYMBOL = rf"\\?[%$]|[{_COINS}]|\^\\circ(?:\s?[CFK](?![A-Za-z]))?"
_TEXT = r"\\text\{(?!\s*(?:and|or|base|mod|if|when|\()(?![A-Za-z]))(?:[^{}]|\{[^{}]*\})*+\}"
_NO_UNIT = r"(?!(?:pi|sqrt|sin|cos|tan|cot|log|exp|and|or|mod|over|choose|infty|base)(?![A-Za-z]))"


def _tail(word: str) -> re.Pattern[str]:
    factor = rf"(?:{_SYMBOL}|{_TEXT}|(?<![A-Za-z\\]){_NO_UNIT}{word}(?![A-Za-z])|/|\\cdot|\.)(?:\^\{{?-?\d\}}?)?"
    return re.compile(rf"(?:\s*{factor})++\s*$")


_ANY = _tail(rf"(?:[A-Za-z]{{3,}}+|{_WORD})")  # after a number
_SURE = _tail(rf"(?=[A-Za-z]{{2}}){_WORD}")  # after an expression: a letter or an unknown word may be a variable
_MONEY = re.compile(rf"([-+]?)\s*(?:\\text\{{\s*)?(?:US)?(\\\$|[{_COINS}]|USD|EUR|GBP|Rs\.?)\s*\}}?\s*(?=[-\d.\\])")
_PART = re.compile(rf"(square |sq\.? |cubic )?([A-Za-z]+|{_SYMBOL})(?:\^(-?\d)| (squared|cubed))?")
_AMOUNT = r"(?<![\d.])(\d++(?:\.\d++)?)\s*+([A-Za-z]++)\.?"
_VALUE = re.compile(
    r"(?P<sign>[-+]?)\s*\{?(?:\\frac\{(?P<top>-?\d+)\}\{(?P<under>\d+)\}|(?P<a>\d+)\s*/\s*(?P<b>\d+)"
    r"|10\s*\^\s*\{?\s*(?P<power>-?\s*\d{1,4})\s*\}?|(?P<mantissa>\d+(?:\.\d*)?)(?:\s*(?:\\times|\\cdot|x)\s*"
    r"(?:10\s*\^\s*\{?\s*(?P<ten>-?\s*\d{1,4})\s*\}?|(?P<scale>\d+)(?!\s*\^)))?)\}?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Unit:
    """dims: powers of dimensions; empty if a word is unknown. factor: in units of size 1. head: dims before *per*."""

    dims: Counter[str]
    factor: Fraction
    head: Counter[str]
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Quantity:
    """values: more than one for *3 hours 30 minutes*, which is 3.5 and 210. plain: neither unit nor fraction."""

    values: tuple[Fraction, ...]
    unit: Unit | None
    plain: bool = False

    @property
    def percent(self) -> bool:
        return self.unit is not None and self.unit.dims == {"percent": 1}


def read_unit(text: str) -> Unit | None:
    """The unit of a text that holds nothing else, or None if that is empty."""
    text = re.sub(r"\s*\^\{?\s*(-?\d)\s*\}?", r"^\1", text)
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\cdot|[.,()](?!\d)", " ", re.sub(r"\s+\^", "^", text))
    dims, factor, words, known, sign = Counter[str](), Fraction(1), set[str](), True, 1
    head: Counter[str] | None = None
    for piece in re.split(r"(/|\bper\b)", " ".join(text.split())):
        if piece in ("/", "per"):
            sign, head = -1, dims.copy() if piece == "per" and head is None else head
            continue
        for before, word, power, after in _PART.findall(piece):
            stem = word.removesuffix("s") if len(word) > 2 else word
            dimension, size = _KNOWN.get(word) or _KNOWN.get(stem) or ("", Fraction(1))
            times = int(power or {"c": 3, "s": 2}.get((before or after)[:1], 1)) * sign
            known &= bool(dimension)
            dims[dimension] += times
            factor *= size**times
            words.add(stem.lower())
    if not words:
        return None
    return Unit(dims if known else Counter(), factor, dims if head is None else head, frozenset(words))


def split_unit(text: str, *, loose: bool = False) -> tuple[str, Unit | None]:
    r"""An answer without its unit, and that unit. ``loose``: what stands before is a number, so any word is a unit.

    >>> body, unit = split_unit(r"15 \text{cm}^{2}")
    >>> body, unit.dims
    ('15', Counter({'length': 2}))
    """
    money = _MONEY.match(text)
    if money:
        text = money[1] + text[money.end() :]
    found = (_ANY if loose else _SURE).search(text, max(0, len(text) - 100))  # no unit is longer
    if found is None or not re.search(r"[\d})!A-Za-z]", text[: found.start()]):
        return text, read_unit(money[2]) if money else None
    unit = read_unit(found[0])
    return text[: found.start()].strip(), read_unit(money[2]) if money else unit


def read_quantity(text: str, *, loose: bool = True) -> Quantity | None:
    r"""An exact number and its unit, or None. ``loose`` as for ``split_unit``.

    >>> read_quantity(r"3 \times 10^{-2} \text{m}").values, read_quantity("3 hours 30 minutes").values
    ((Fraction(3, 100),), (Fraction(7, 2), Fraction(210, 1)))
    """
    if whole := compound(text):
        return whole
    body, unit = split_unit(text, loose=loose)
    if not (value := _VALUE.fullmatch(body.strip())):
        return None
    number = _fraction(value)
    return None if number is None else Quantity((number,), unit, unit is None and value["mantissa"] is not None)


def _fraction(value: re.Match[str]) -> Fraction | None:
    part = value.groupdict()
    top, under = part["top"] or part["a"], part["under"] or part["b"]
    if top:
        number = Fraction(int(top), int(under)) if int(under) else None
    elif part["power"]:
        number = _power(part["power"])
    else:
        number = Fraction(part["mantissa"].rstrip(".")) * int(part["scale"] or 1) * _power(part["ten"] or "0")
    return -number if number is not None and part["sign"] == "-" else number


def _power(exponent: str) -> Fraction:
    return Fraction(10) ** int(exponent.replace(" ", ""))


def compound(text: str) -> Quantity | None:
    """One quantity in several units, as *3 hours and 30 minutes*, or None."""
    text = re.sub(r"\\text\{|\}|\band\b|,(?!\d)|\\ ", " ", text)
    parts = re.findall(_AMOUNT, text)
    units = [unit for _, word in parts if (unit := read_unit(word))]
    if len(parts) < 2 or re.sub(_AMOUNT, "", text).strip() or len(units) < len(parts):
        return None
    if not units[0].dims or any(unit.dims != units[0].dims for unit in units):
        return None
    total = sum((Fraction(n) * unit.factor for (n, _), unit in zip(parts, units, strict=True)), Fraction(0))
    return Quantity(tuple(total / unit.factor for unit in units), units[0])


def agree(written: Quantity, answer: Quantity, tolerance: Fraction) -> bool:
    """Whether a quantity is that of the reference, within the tolerance."""

    def near(a: Fraction, b: Fraction) -> bool:
        return abs(a - b) <= tolerance

    right = answer.values[0]
    if written.percent and not answer.percent:
        whole = answer.plain and abs(right) > 1 and near(written.values[0], right)
        return answer.unit is None and (whole or near(written.values[0] / 100, right))
    if answer.percent and not written.percent:
        return written.unit is None and near(written.values[0], right / 100)
    ratio = unit_ratio(written.unit, answer.unit)
    if ratio is None:
        return False
    values = written.values if answer.unit is None else written.values[:1]
    return any(near(value * ratio, right) for value in values)


def unit_ratio(written: Unit | None, answer: Unit | None) -> Fraction | None:
    """What one unit is of the other: 1 if one of them is missing or unknown, None if they cannot be the same."""
    if written is None or answer is None:
        return Fraction(1)
    if written.dims and answer.dims:
        if written.dims == answer.dims:
            return written.factor / answer.factor
        return Fraction(1) if written.head == answer.head else None
    if not written.dims and not answer.dims:
        return Fraction(1) if written.words & answer.words else None
    return Fraction(1)
