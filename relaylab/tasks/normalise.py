r"""One spelling for each answer, before anything is compared.

``normalise`` applies ``STEPS`` in their order. A step maps a text to a text and knows one habit of writing. Steps never
change a value: they know no references. ``tests/test_normalise.py`` has a table of examples for each step.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from fractions import Fraction

GROUP = r"\{((?:[^{}]|\{[^{}]*\})*+)\}"  # what one pair of braces holds, at most two levels deep
FONTS = r"text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|operatorname\*?|boldsymbol|bm|emph|rm|bf"
_INNER = re.compile(rf"\\(?:{FONTS})\s*\{{([^{{}}]*)\}}")
TEXT = re.compile(rf"\\(?:{FONTS})\s*{GROUP}")
FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|max|min|gcd|sqrt"
# What stands behind `min` and `sec` if they are units: no argument of a function.
_NO_ARGUMENT = re.compile(
    r"\s*(?:\^\s*\{?\s*-?\d\s*\}?\s*)?(?:$|[/},;)]|(?:\\text\{\s*)?(?:and|or)(?![A-Za-z]))"
    r"|\s*\d[\d.]*\s?(?:\\text|s(?:ec)?(?![A-Za-z]))"
)
GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|pi|rho|sigma|tau|phi|omega"
SMALL_NUMBERS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty",
)
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_SIGNS = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
    | {"\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": "/", "\u2044": "/", "\u2215": "/"}
    | {"\u00b1": r"\pm ", "\u2213": r"\mp ", "\u00b0": r"^\circ", "\u221e": r"\infty ", "\u03c0": r"\pi "}
    | {"\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u2208": r"\in ", "\u2205": r"\emptyset "}
    | {"\u222a": r"\cup ", "\u2229": r"\cap ", "\u2261": r"\equiv ", "\u2248": r"\approx ", "\u2220": r"\angle "}
    | {"\u03b8": r"\theta ", "\u03b1": r"\alpha ", "\u03b2": r"\beta ", "\u03c9": r"\omega ", "\u03bb": r"\lambda "}
    | {"\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u221a": r"\sqrt "}
)
_UP, _DOWN = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b\u207f", "\u2080-\u2089"


def signs(text: str) -> str:
    """Unicode signs as LaTeX, and one form for every letter."""
    text = re.sub(r"\u221a\s*(\d+|[a-z]|\([^()]*\))", r"\\sqrt{\1}", text)
    text = re.sub(rf"[{_UP}]+", lambda m: f"^{{{m[0]}}}", text)
    text = re.sub(rf"[{_DOWN}]+", lambda m: f"_{{{m[0]}}}", text)
    text = re.sub("[\u00bc-\u00be\u2150-\u215e]", _vulgar, text)
    return unicodedata.normalize("NFKC", text.translate(_SIGNS))


def _vulgar(match: re.Match[str]) -> str:
    top, _, under = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return rf" \frac{{{top}}}{{{under}}}"


def delimiters(text: str) -> str:
    r"""No math delimiters, no sizes of brackets, one command for each meaning."""
    text = re.sub(r"(?<!\\)\$|\\[()]|^\s*\\\[|(?<!\\)\\\]\s*$|\*\*(?=\S[^*]*\*\*$)|(?<=\S)\*\*$", "", text)
    text = re.sub(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|limits|mathopen|mathclose)(?![A-Za-z])\.?", "", text)
    text = re.sub(r"\\\\\s*\[[^\]]*\]", r"\\\\", text)
    text = re.sub(r"\\([dtc])(frac|binom)", r"\\\2", text)
    text = re.sub(r"\\([gl]e)(?:q|qslant)(?![A-Za-z])", r"\\\1 ", text)
    for old, new in (
        (r"\\(?:lt)(?![A-Za-z])", "<"),
        (r"\\(?:gt)(?![A-Za-z])", ">"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\+/?-(?=\s*[\d\\])", r"\\pm "),
        (r"\^?\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?", r"^\\circ "),
        (r"\\mathbb\s*([A-Z])(?![A-Za-z])", r"\\mathbb{\1}"),
        (r"\\(max|min|gcd)\s*\\\{(.*?)\\\}", r"\\\1(\2)"),
        (r"\\(sin|cos|tan|cot|sec|csc)\s*\(?\s*(\d+(?:\.\d+)?)\s*\^\\circ\s*\)?", r"\\\1(\2\\pi/180)"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\(?:varnothing)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:ldots|dots|cdots|dotsc)(?![A-Za-z])|\.{3}", r"\\ldots "),
        (r"\\(?:lor|vee)(?![A-Za-z])", r"\\text{ or }"),
    ):
        text = re.sub(old, new, text)
    return text


def spaces(text: str) -> str:
    r"""One space for every kind of space, and none within a number."""
    text = re.sub(r"(?<=\d)\s*(?:,\\!|\{,\}|(?<!\\)\\[,;!]|~)\s*(?=\d{3}(?!\d))", "", text)
    text = text.replace(r"\!", "")
    text = re.sub(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick)space(?![A-Za-z])", " ", text)
    return re.sub(r"(?<![\w.,^}])\d{1,3}(?:[ ,]\d{3})++(?!\d|,\d|\s+\d)", _ungrouped, text)


def _ungrouped(match: re.Match[str]) -> str:
    before = match.string[: match.start()]
    inside = before.count("(") + before.count("[") + before.count(r"\{") > sum(map(before.count, (")", "]", r"\}")))
    mixed = " " in match[0] and "," in match[0]
    return match[0] if inside or mixed else re.sub(r"\D", "", match[0])


def texts(text: str) -> str:
    r"""``\text{}`` around words alone: numbers, money, single letters and functions stand without it."""
    return TEXT.sub(_text, _INNER.sub(_text, text))  # \text{\textbf{B}}


def _text(match: re.Match[str]) -> str:
    inner = re.sub(r"\^\{(-?\d)\}", r"^\1", match[1].replace(r"\_", "_").replace(r"\&", "&"))
    core = inner.strip()
    if re.fullmatch(FUNCTIONS, core) and not _is_unit(match):
        return rf"\{core} "
    if re.fullmatch(r"[-+(]?\s*(?:\\?\$)?[\d.].*|\\[A-Za-z]+|\\text\{.*\}", core) or re.fullmatch(r"[iexy]|\W*", core):
        return inner
    return rf"\text{{{inner}}}"


def _is_unit(match: re.Match[str]) -> bool:
    """Whether ``min`` or ``sec`` is a unit: behind a number or a stroke, and without an argument."""
    if match[1].strip() not in ("min", "sec") or not _NO_ARGUMENT.match(match.string, match.end()):
        return False
    return match.string[: match.start()].rstrip().endswith(tuple("0123456789}/"))


def remarks(text: str) -> str:
    r"""No words around an answer: *The answer is*, *for all x*, a full stop."""
    said = r"(?i:the )?(?i:final |correct )?(?i:answer|option|choice)(?i: is)?\s*[:=]?\s*"
    text = re.sub(rf"^\s*(?:(\\(?:{FONTS})\s*\{{)\s*)?{said}(\}})?", lambda m: (m[1] or "") if not m[2] else "", text)
    begin = rf"(?<=[^\s,(])[ ,(]*+(?:\\(?:{FONTS})\s*+\{{[ ,(]*+)?"
    text = re.sub(rf"{begin}\b(?:for (?:all|any|every|each|some)|where)\b.*$", "", text)
    text = re.sub(r",?\s*\\forall.*$", "", text)
    text = re.sub(r"^(?:=|\\implies|\\Rightarrow|\\therefore)\s*", "", text.strip())
    return re.sub(r"(?<=[\w})\]])\s*[.,;]$", "", text.strip()).strip()


def python(text: str) -> str:
    r"""Python's and SymPy's spellings as LaTeX: ``x**2``, ``sqrt(2)``, ``exp(-a*t)``, ``2.5e-3``, ``1./3``."""
    text = re.sub(r"\*\*\s*(-?\w+(?:\.\d+)?)", r"^{\1}", text).replace("**", "^")
    text = re.sub(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,4})(?![\w.])", r"\1 \\times 10^{\2}", text)
    text = re.sub(r"(?<![\w.])(\d+)\.(?=\s*(?:[/*^)}]|$))", r"\1", text)
    text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)
    text = re.sub(r"\^\s*(-\s*\w+(?:\.\d+)?|\d+\.\d+|\d\d+)", r"^{\1}", text)
    text = re.sub(rf"\\text\{{[^{{}}]*\}}|(?<![\\A-Za-z{{_])({FUNCTIONS}|{GREEK}|oo|inf)(?![A-Za-z])", _command, text)
    text = re.sub(r"\\sqrt\s*\(((?:[^()]|\([^()]*\))*+)\)", r"\\sqrt{\1}", text)
    return re.sub(r"\s*(?<!\^)\*\s*", r" \\cdot ", text)


def _command(match: re.Match[str]) -> str:
    name = match[1]
    if name is None or _is_unit(match):
        return match[0]
    return r"\infty " if name in ("oo", "inf") else rf"\{name} "


def fractions(text: str) -> str:
    r"""Mixed numbers and repeating decimals as one fraction: ``1 4/5``, ``137\frac12``, ``4.\overline{6}``."""
    text = re.sub(r"\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))", _frac, text)
    text = re.sub(r"(?<![\w.,^}\\])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}(?![\d^!])", _mixed, text)
    text = re.sub(r"(?<![\w.,^}\\/])(\d+) (\d+)/(\d+)(?![\w.^!/])", _mixed, text)
    repeating = r"(?<![\w.])(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))|\((\d+)\))(?!\d)"
    return re.sub(repeating, _repeating, text)


def _frac(match: re.Match[str]) -> str:
    top, under = (part.strip() for part in match.groups() if part is not None)
    return rf"\frac{{{top}}}{{{under}}}"


def _mixed(match: re.Match[str]) -> str:
    whole, top, under = map(int, match.groups())
    return rf"\frac{{{whole * under + top}}}{{{under}}}" if 0 < top < under else match[0]


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, *repeated = match.groups()
    part = next(filter(None, repeated))
    value = int(whole + fixed or 0) + Fraction(int(part), 10 ** len(part) - 1)
    value /= 10 ** len(fixed)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def scales(text: str) -> str:
    r"""Numbers in words: ``100 billion``, ``two dozen``, ``\text{five}``."""
    names = "|".join(SCALES)
    scaled = rf"(?<=[\d}}])\s*(?:\\text\{{\s*)?(?:-\s*)?({names})s?(?![A-Za-z])(?:\s*\}}|(\s[^{{}}]*\}}))?"
    text = re.sub(scaled, lambda m: rf" \times {SCALES[m[1]]}" + (rf" \text{{{m[2]}" if m[2] else ""), text)
    whole = re.fullmatch(rf"(?:\\text\{{)?\s*([A-Za-z]+)(?:[ -]({names}))?\s*\}}?", text)
    if whole and whole[1].lower() in SMALL_NUMBERS:
        return str(SMALL_NUMBERS.index(whole[1].lower()) * SCALES.get(whole[2], 1))
    return text


def letters(text: str) -> str:
    r"""The imaginary unit, derivatives by time, and names with a subscript, each in a form that math-verify reads."""
    text = re.sub(r"\\(?:imath|jmath)(?![A-Za-z])|(?<=\d)j(?![A-Za-z])", " i ", text)
    text = re.sub(r"\\dot\s*(?:\{([^{}]*)\}|(\w))", lambda m: rf"\frac{{d {m[1] or m[2] or ''}}}{{d t}}", text)
    text = re.sub(r"\\ddot\s*(?:\{([^{}]*)\}|(\w))", lambda m: rf"\frac{{d^2 {m[1] or m[2] or ''}}}{{d t^2}}", text)
    operators = "log|lim|sum|prod|int|max|min|inf|sup|bigcup|bigcap|gcd|text|oint|mathbb"
    command = rf"\\(?!(?:{operators})(?![A-Za-z]))[A-Za-z]+"
    factors = r"(?<![A-Za-z\\])(?!lim|sum|int|sup|mod)((?:[A-Za-z]{1,2})?)"  # GM_s is G times M_s
    name = rf"(?:({command})|{factors}([A-Za-z]))\s*_\s*(?:{GROUP}|([A-Za-z0-9]|\\[a-z]+))"
    return re.sub(name, _subscripted, text)


def _subscripted(match: re.Match[str]) -> str:
    r"""A symbol that depends on the name alone. math-verify reads `E_1` and `m_{\max}` as strings."""
    sub = re.sub(rf"\\(?:{FONTS})(?![A-Za-z])|[\\{{}}\s]", "", match[4] or match[5] or "")
    name = match[1] or match[3]
    letter = name if name in "abcjklmnpqrstuvwxyz" else "x"  # others are numbers or functions somewhere
    return f"{f'{match[2]} ' if match[2] else ''}{letter}_{{{zlib.crc32(f'{name}_{sub}'.encode()) % 10**6}}}"


STEPS = (signs, delimiters, spaces, remarks, texts, python, fractions, scales, letters)


def normalise(text: str) -> str:
    r"""The answer as it is compared.

    >>> normalise(r"$\text{The answer is } 1\tfrac45 \, \mathrm{cm}^{2}.$")
    '\\frac{9}{5} \\text{cm}^{2}'
    """
    for step in STEPS:
        text = step(" ".join(text.split()))  # long runs of spaces would cost regular expressions cubic time
    return " ".join(text.split())
