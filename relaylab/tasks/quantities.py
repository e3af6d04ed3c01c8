r"""Numbers with their units, exactly. All functions take texts that ``normalise`` has written.

Units are compared where both sides have one: 15 cm is not 15 m, and 1.6 km is 1600 m. A reference without a unit accepts
any. A percentage agrees with the hundredth of its number, or with a plain reference above 1 (*what percentage ...?*).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

# Each dimension: names of a unit and its size.
_TABLE = {
    "length": "m meter metre 1, cm centimeter centimetre 1/100, mm millimeter millimetre 1/1000, km kilometer kilometre "
    "1000, nm nanometer 1/1000000000, in inch inches 127/5000, ft foot feet 381/1250, yd yard 1143/1250, mi mile miles "
    "201168/125",
    "time": "s sec second 1, ms millisecond 1/1000, min minute 60, h hr hour 3600, day 86400, week 604800",
    "months": "month 1, yr year 12",
    "mass": "g gram 1, kg kilogram 1000, mg milligram 1/1000, lb lbs pound 45359237/100000, oz ounce 45359237/1600000",
    "volume": "L l liter litre 1, mL ml milliliter millilitre 1/1000",
    "dollars": r"\$ dollar usd USD 1, cent 1/100",
    "euros": "\u20ac euro eur EUR 1",
    "sterling": "\u00a3 gbp GBP 1",
    "rupees": "\u20b9 rs Rs rupee 1",
    "yen": "\u00a5 yen JPY 1",
    "angle": r"^\circ deg degree \degree 1",
    "radians": "rad radian 1",
    "percent": r"% \% percent percentage pct 1/100",
}
_KNOWN = {
    name: (dimension, Fraction(entry.split()[-1]))
    for dimension, entries in _TABLE.items()
    for entry in entries.split(",")
    for name in entry.split()[:-1]
}
_WORDS = "(?:(?:" + "|".join(sorted((re.escape(n) for n in _KNOWN if n[0].isalpha()), key=len, reverse=True)) + ")s?|square|cubic|sq|per)"
_SYMBOLS = r"\\?[%$]|[\u20ac\u00a3\u20b9\u00a5]|\^\\circ(?:\s?[CFK](?![A-Za-z]))?"
_JOINING = r"\\text\{(?!\s*(?:and|or|base|mod|if|when|\()(?![A-Za-z]))(?:[^{}]|\{[^{}]*\})*+\}"
_NO_UNIT = r"(?!(?:pi|sqrt|sin|cos|tan|cot|log|exp|and|or|mod|over|choose|infty|base)(?![A-Za-z]))"


def _tail(word: str) -> re.Pattern[str]:
    factor = rf"(?:{_SYMBOLS}|{_JOINING}|(?<![A-Za-z\\]){_NO_UNIT}{word}(?![A-Za-z])|/|\\cdot|\.)(?:\^\{{?-?\d\}}?)?"
    return re.compile(rf"(?:\s*{factor})++\s*$")


_ANY = _tail(r"(?:[A-Za-z]{3,}+|" + _WORDS + ")")  # after a number
_SURE = _tail(rf"(?=[A-Za-z]{{2}}){_WORDS}")  # after an expression: a letter or an unknown word may be a variable
_MONEY = re.compile(rf"([-+]?)\s*(?:\\text\{{\s*)?(?:US)?(\\\$|[\u20ac\u00a3\u20b9\u00a5]|USD|EUR|GBP|Rs\.?)\s*\}}?\s*(?=[-\d.\\])")
_PART = re.compile(rf"(square |sq\.? |cubic )?([A-Za-z]+|{_SYMBOLS})(?:\^(-?\d)| (squared|cubed))?")
_VALUE = re.compile(
    r"(?P<sign>[-+]?)\s*(?:\\frac\s*(?:\{\s*(?P<top>-?\d+)\s*\}\s*\{\s*(?P<under>\d+)\s*\}|(?P<t>\d)\s*(?P<u>\d))"
    r"|(?P<a>\d+)\s*/\s*(?P<b>\d+)|10\s*\^\s*\{?\s*(?P<power>-?\s*\d{1,4})\s*\}?|(?P<mantissa>\d+(?:\.\d*)?)"
    r"(?:\s*(?:\\times|\\cdot|x)\s*(?P<scale>10*(?![\d^ .]))?(?:10\s*\^\s*\{?\s*(?P<ten>-?\s*\d{1,4})\s*\}?)?)?)"
)


@dataclass(frozen=True, slots=True)
class Unit:
    """dims: of known words, each with its power; empty if a word is unknown. head: those before *per*."""

    dims: tuple[tuple[str, int], ...] = ()
    factor: Fraction = Fraction(1)
    head: tuple[tuple[str, int], ...] = ()
    words: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Quantity:
    """values: more than one for *3 hours 30 minutes*, which is 3.5 and 210. plain: neither unit nor fraction."""

    values: tuple[Fraction, ...]
    unit: Unit | None
    plain: bool = False

    @property
    def percent(self) -> bool:
        return self.unit is not None and self.unit.dims == (("percent", 1),)


def read_unit(text: str) -> Unit | None:
    """The unit of a text that holds nothing else, or None if that is empty."""
    text = re.sub(r"\s*\^\{?\s*(-?\d)\s*\}?", r"^\1", text)
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\cdot|[.,()](?!\d)", " ", re.sub(r"\s+\^", "^", text))
    dims: dict[str, int] = {}
    heads: dict[str, int] | None = None
    factor, words, known, sign = Fraction(1), set(), True, 1
    for piece in re.split(r"(/|\bper\b)", " ".join(text.split())):
        if piece in ("/", "per"):
            sign = -1
            heads = dict(dims) if piece == "per" and heads is None else heads
            continue
        for before, word, power, after in _PART.findall(piece):
            stem = word.removesuffix("s") if len(word) > 2 else word
            entry = _KNOWN.get(word) or _KNOWN.get(stem)
            times = int(power or {"c": 3, "s": 2}.get((before or after)[:1], 1)) * sign
            words.add(stem.lower())
            known = known and entry is not None
            if entry is not None:
                dims[entry[0]] = dims.get(entry[0], 0) + times
                factor *= entry[1] ** times
    if not words:
        return None
    table = tuple(sorted(dims.items())) if known else ()
    return Unit(table, factor, tuple(sorted((heads or dims).items())), frozenset(words))


def split_unit(text: str, *, loose: bool = False) -> tuple[str, Unit | None]:
    r"""An answer without its unit, and that unit. ``loose``: what stands before is a number, so any word is a unit.

    >>> body, unit = split_unit(r"15 \text{cm}^{2}")
    >>> body, unit.dims
    ('15', (('length', 2),))
    """
    money = _MONEY.match(text)
    if money:
        text = money[1] + text[money.end() :]
    found = (_ANY if loose else _SURE).search(text)
    if found is None or not re.search(r"[\d})!A-Za-z]", text[: found.start()]):
        return text, read_unit(money[2]) if money else None
    unit = read_unit(found[0])
    return text[: found.start()].strip(), read_unit(money[2]) if money else unit


def read_quantity(text: str, *, loose: bool = True) -> Quantity | None:
    r"""An exact number and its unit, or None. ``loose`` as for ``split_unit``.

    >>> read_quantity(r"3 \times 10^{-2} \text{m}").values, read_quantity("3 hours 30 minutes").values
    ((Fraction(3, 100),), (Fraction(7, 2), Fraction(210, 1)))
    """
    if (compound := _compound(text)) is not None:
        return compound
    body, unit = split_unit(text, loose=loose)
    if not (value := _VALUE.fullmatch(body.strip().strip("{}") if body.startswith("{") else body.strip())):
        return None
    number = _fraction(value)
    return None if number is None else Quantity((number,), unit, unit is None and value["mantissa"] is not None)


def _fraction(value: re.Match[str]) -> Fraction | None:
    part = value.groupdict()
    top, under = part["top"] or part["t"] or part["a"], part["under"] or part["u"] or part["b"]
    if top is not None:
        if int(under) == 0:
            return None
        number = Fraction(int(top), int(under))
    elif part["power"] is not None:
        number = _power(part["power"])
    elif value[0].rstrip().endswith(("x", r"\times", r"\cdot")):
        return None
    else:
        number = Fraction(part["mantissa"].rstrip(".")) * int(part["scale"] or 1) * _power(part["ten"] or "0")
    return -number if part["sign"] == "-" else number


def _power(exponent: str) -> Fraction:
    return Fraction(10) ** int(exponent.replace(" ", ""))


def is_compound(text: str) -> bool:
    """Whether a text is one quantity in several units, as *3 hours and 30 minutes*."""
    return _compound(text) is not None


def _compound(text: str) -> Quantity | None:
    text = re.sub(r"\\text\{|\}|\band\b|,(?!\d)|\\ ", " ", text)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)\.?", text)
    if len(parts) < 2 or re.sub(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)\.?", "", text).strip():
        return None
    units = [read_unit(word) for _, word in parts]
    if any(unit is None or unit.dims != units[0].dims or not unit.dims for unit in units):
        return None
    total = sum((Fraction(number) * unit.factor for (number, _), unit in zip(parts, units, strict=True)), Fraction(0))
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
    if ratio == 1 or len(written.values) == 1:
        return any(near(value * ratio, right) for value in written.values)
    return near(written.values[0] * ratio, right)


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
