"""Each step of the one spelling: what it changes, and what it leaves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaylab.tasks import normalise as n

EXAMPLES = {
    n.signs: [
        ("\u22123\u00d710\u2075", r"-3\times 10^{5}"),
        ("x\u00b2 \u2264 \u03c0", r"x^{2} \le  \pi "),
        ("3\u00bd", r"3 \frac{1}{2}"),
        ("\uff11\u2009000", "1 000"),
        ("cafe\u0301", "caf\u00e9"),
        ("11\u221a2", r"11\sqrt{2}"),
    ],
    n.delimiters: [
        (r"$\left(\dfrac12, 3\right]$", r"(\frac12, 3]"),
        (r"\(x \geqslant 2\)", r"x \ge  2"),
        (r"a \\[6pt] b", r"a \\ b"),
        (r"\$5", r"\$5"),
        (r"30^{\circ} 30\degree", r"30^\circ  30^\circ "),
        (r"\max\{a,b\}", r"\max(a,b)"),
        (r"\sin 30^\circ", r"\sin(30\pi/180)"),
        (r"+\infty, \{\}", r"\infty, \emptyset "),
    ],
    n.spaces: [
        (r"10\,000", "10000"),
        ("10 080", "10080"),
        (r"11,\! 111{,}100", "11111100"),
        ("1,234.50", "1234.50"),
        ("(1,234)", "(1,234)"),
        ("5 40", "5 40"),
        ("1, 234, 567", "1, 234, 567"),
        (r"a\quad b~c", "a b c"),
        (r"1 \\ 2", r"1 \\ 2"),
    ],
    n.remarks: [
        (r"\text{The answer is } 5.", "5"),
        (r"\text{Answer: 5 cm}", r"\text{5 cm}"),
        (r"f(x) = 2x \text{ for all } x", "f(x) = 2x"),
        (r"x^2, \forall x", "x^2"),
        ("= 5", "5"),
        ("where", "where"),
        ("3.5", "3.5"),
    ],
    n.texts: [
        (r"\text{-10}", "-10"),
        (r"\text{18 cm}", "18 cm"),
        (r"5 \mathrm{cm}^2", r"5 \text{cm}^2"),
        (r"\text{\textbf{B}}", r"\text{B}"),
        (r"274\mathrm{i}", "274i"),
        (r"\operatorname{arcsin} x", r"\arcsin x"),
    ],
    n.python: [
        ("x**-2", "x^{-2}"),
        ("2*pi*sqrt(3)", r"2 \cdot \pi \cdot \sqrt{3}"),
        (r"\exp{a*t}", r"e^{a \cdot t}"),
        ("2.5e-3", r"2.5 \times 10^{-3}"),
        ("-1./3", "-1/3"),
        (".5", "0.5"),
        ("2^10 x^(1/2)", "2^{10} x^{1/2}"),
        (r"\text{pi} spin", r"\text{pi} spin"),
    ],
    n.fractions: [
        ("1 4/5", r"\frac{9}{5}"),
        (r"-137\frac12", r"-\frac{275}{2}"),
        (r"\frac{270}7", r"\frac{270}{7}"),
        (r"4.\overline{6}", r"\frac{14}{3}"),
        ("0.1(6)", r"\frac{1}{6}"),
        (r"2\frac{3}{2}", r"2\frac{3}{2}"),
        (r"x^2\frac{1}{2}", r"x^2\frac{1}{2}"),
        ("1 x/5", "1 x/5"),
    ],
    n.scales: [
        ("100 billion", r"100 \times 1000000000"),
        (r"5 \text{ million dollars}", r"5 \times 1000000 \text{ dollars}"),
        ("2 dozen", r"2 \times 12"),
        ("two dozen", "24"),
        (r"\text{Three million}", "3000000"),
        ("two thirds", "two thirds"),
        (r"\text{eleven}", "11"),
        ("millions", "millions"),
    ],
    n.letters: [
        ("2i+x", "2 i +x"),
        ("274j", "274 i"),
        (r"\dot{\omega}", r"\frac{d \omega}{d t}"),
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
        (r"\lambda_{\text {red }}", r"\lambda_{red}", True),
        ("E_1", "E_2", False),
        (r"GM_\odot", r"G M_{\odot}", True),
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
