"""Each step of the one spelling: what it changes, and what it leaves. ``grading_forms.txt`` has more of the changes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaylab.tasks import normalise as n

EXAMPLES = {
    n.signs: [
        ("\u22123\u00d710\u2075", r"-3\times 10^{5}"),
        ("x\u2081 \u2264 \u03c0", r"x_{1} \le  \pi "),
        ("\uff11\u2009000", "1 000"),
        ("11\u221a15", r"11\sqrt{15}"),
    ],
    n.delimiters: [
        (r"\(x \ge 2\), \$5", r"x \ge 2, \$5"),
        (r"\lbrace x \lt 2 \lor x \gt 5 \rbrace", r"\{ x < 2 \text{ or } x > 5 \}"),
        (r"\dbinom{5}{2} != +/-2", r"\binom{5}{2} \ne \pm 2"),
    ],
    n.spaces: [
        (r"11,\! 111{,}100", "11111100"),
        ("(1,234)", "(1,234)"),
        ("5 40", "5 40"),
        ("1, 234, 567", "1, 234, 567"),
        (r"1 \\ 2", r"1 \\ 2"),
    ],
    n.remarks: [
        (r"\text{The answer is } 5.", "5"),
        (r"\text{Answer: 5 cm}", r"\text{5 cm}"),
        (r"x^2, \forall x", "x^2"),
        ("= 5", "5"),
        ("where", "where"),
        ("3.5", "3.5"),
    ],
    n.texts: [
        (r"274\mathrm{i}", "274i"),
        (r"\operatorname{arcsin} x", r"\arcsin x"),
        (r"90 \text{ min}", r"90 \text{ min}"),
        (r"2\operatorname{sec}\theta", r"2\sec \theta"),
    ],
    n.python: [
        ("2^-10 x^(1/2)", "2^{-10} x^{1/2}"),
        (r"\text{pi} spin", r"\text{pi} spin"),
        ("30 sec, 1 min 5 s/2 min", "30 sec, 1 min 5 s/2 min"),
        ("9 m/sec^2", "9 m/sec^2"),
        ("2 sec^2 x + 2 sec(x) + 1/sec x + 3 min(a, b)", r"2 \sec ^2 x + 2 \sec (x) + 1/\sec x + 3 \min (a, b)"),
    ],
    n.fractions: [
        (r"-137\frac12", r"-\frac{275}{2}"),
        (r"\frac{270}7", r"\frac{270}{7}"),
        ("0.1(6)", r"\frac{1}{6}"),
        (r"2\frac{3}{2}", r"2\frac{3}{2}"),
        (r"x^2\frac{1}{2}", r"x^2\frac{1}{2}"),
        ("1 x/5", "1 x/5"),
    ],
    n.scales: [("two dozen", "24"), (r"\text{Three million}", "3000000"), ("two thirds", "two thirds")],
    n.letters: [
        ("274j", "274 i"),
        (r"\ddot{x}", r"\frac{d^2 x}{d t^2}"),
        (r"\log_{10} 2", r"\log_{10} 2"),
        (r"\sum_{i=1}^n i", r"\sum_{i=1}^n i"),
        ("40_9", "40_9"),
    ],
}


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [(step, text, expected) for step, pairs in EXAMPLES.items() for text, expected in pairs],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_step(step, text, expected):
    assert " ".join(step(text).split()) == " ".join(expected.split())


def test_every_step_has_examples():
    assert tuple(EXAMPLES) == n.STEPS


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("E_1", "E_{1}", True),
        (r"m_{\max }", r"m_{\text{max}}", True),
        (r"GM_\odot", r"G M_{\odot}", True),
        ("E_1", "E_2", False),
        ("GM_s", "GM_r", False),
        ("E_1", "F_1", False),
    ],
)
def test_names_with_a_subscript(a, b, same):
    assert (n.letters(a) == n.letters(b)) is same


@settings(max_examples=100)
@given(
    st.text(max_size=40)
    | st.lists(st.sampled_from([r"\text{", "}", "1", ",", "\\", "frac", "_", "^", " "])).map("".join)
)
def test_any_text_has_a_spelling(text):
    assert isinstance(n.normalise(text), str)
