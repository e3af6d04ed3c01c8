"""Which ways of writing an answer are graded as it: the table of docs/grading.md.

    .venv/bin/python benchmarks/grading_forms.py            # the table, in Markdown
    .venv/bin/python benchmarks/grading_forms.py --fuzz 10000   # that many random answers: reasons and times

References are those of the public benchmarks or in their manner. "should" is what a reader would say; where the grader
says otherwise the row is marked.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter

from relaylab.tasks.answers import grade_problem, grade_problem_details
from relaylab.tasks.suites import Problem

# Kind (and unit or tolerance), form, reference; then what was written: right ones, wrong ones.
N, E, S, L, T = "number", "expression", "several", "letter", "text"
FORMS: list[tuple[dict, str, str, list[str], list[str]]] = [
    ({"kind": N}, "grouped digits", "10080", ["10,080", r"10,\!080", "10{,}080", "10080.0", "$10080$"], ["1008"]),
    ({"kind": N}, "money", "18", [r"\$18", r"\$18.00", "18 dollars", r"18\text{ dollars}"], ["1.8"]),
    ({"kind": N}, "unit", "540", ["540 meters", r"540 \text{ m}", r"540\,\mathrm{m}", "x = 540"], ["540m^2x", "5 40"]),
    ({"kind": N}, "leading zero", "70", ["070", "70."], ["7"]),
    ({"kind": N}, "degrees", r"90^\circ", ["90", r"90^{\circ}", r"90 \text{ degrees}", "90°"], [r"\frac{\pi}{2}"]),
    ({"kind": N}, "scientific", "4e33", [r"4 \times 10^{33}", "4.0e33", r"4\cdot10^{33}\text{ erg/s}"], ["4e32", "4"]),
    (
        {"kind": N},
        "tiny",
        "2.88e-19",
        [r"2.88 \times 10^{-19}", r"28.8 \times 10^{-20}"],
        ["0", r"1.1 \times 10^{-19}", r"\frac{11}{10} \times 10^{-19}", r"\sqrt{2} \times 10^{-19}"],
    ),
    ({"kind": N}, "power of ten", "1e-3", ["0.001", "10^{-3}", r"\frac{1}{1000}"], ["-1000"]),
    ({"kind": N}, "percentage", "62.5%", [r"62.5\%", "0.625", r"\frac{5}{8}"], ["62.5"]),
    ({"kind": N, "unit": "%", "tolerance": 0.1}, "unit %, ± 0.1", "4.2", ["4.2", r"4.25\%", "4.3"], ["4.35", "0.042"]),
    ({"kind": N, "tolerance": 0.002039}, "± 0.01 %", "20.39", ["20.390", "20.3912", r"\frac{2039}{100}"], ["20.4"]),
    ({"kind": N}, "fraction", "0.5", [r"\frac12", r"\dfrac{1}{2}", "1/2", "2^{-1}"], ["0.51"]),
    ({"kind": N}, "no plain number", r"\frac{1+\sqrt{5}}{2}", [r"0.5(\sqrt5+1)"], ["1.6", r"\frac{1-\sqrt{5}}{2}"]),
    (
        {"kind": E},
        "fraction",
        r"\frac{7}{4}",
        [r"\dfrac74", "7/4", "1.75", r"1\frac{3}{4}", r"\tfrac{14}{8}", r"{7 \over 4}"],
        [r"\frac{4}{7}", "1.7"],
    ),
    ({"kind": E}, "percentage", r"\frac{1}{8}", [r"12.5\%", "0.125"], ["12.5"]),
    ({"kind": E}, "root", r"11\sqrt2", [r"11 \sqrt{2}", r"\sqrt{242}", r"\frac{22}{\sqrt2}"], [r"2\sqrt{11}"]),
    ({"kind": E}, "complex", "6 - 5i", ["-5i+6", "6-5 i"], ["6+5i"]),
    ({"kind": E}, "unit", r"864 \mbox{ inches}^2", ["864", r"864 \text{ in}^2"], ["846"]),
    ({"kind": E}, "base", "4210_{5}", ["4210_5", "4210"], ["4210_6", "4211_5"]),
    ({"kind": E}, "name", "x=5", ["5", "x = 5"], ["x=6"]),
    ({"kind": E}, "polynomial", "8n^2 + 4n + 1", ["4n(2n+1)+1", "1+4n+8n^2"], ["8n^2+4n"]),
    ({"kind": E}, "function", r"$f(x)=\frac{1}{x}$", [r"\frac1x", "f(x) = 1/x", "x^{-1}"], ["f(x)=x"]),
    ({"kind": E}, "trigonometry", r"\cot x", [r"\frac{\cos x}{\sin x}", r"\cot(x)"], [r"\tan x"]),
    (
        {"kind": E},
        "equation",
        "5x - 7y + 11z + 4 = 0",
        ["5x-7y+11z=-4", "10x - 14y + 22z + 8 = 0"],
        ["5x-7y+11z+5=0"],
    ),
    (
        {"kind": E},
        "floor",
        r"$\lfloor\frac{2 n-1}{5}\rfloor$",
        [r"\left\lfloor \frac{2n-1}{5} \right\rfloor"],
        ["2n-1"],
    ),
    ({"kind": E}, "inequality", r"$k \geqslant 2$", [r"k \ge 2", r"k\geq2"], [r"k \le 2", "k > 2"]),
    (
        {"kind": E},
        "interval",
        "(3,4]",
        [r"\left(3, 4\right]", r"x \in (3,4]", r"3 < x \le 4"],
        ["[3,4]", "(3,4)"],
    ),
    ({"kind": E}, "union", r"(2,12) \cup (12,102)", [r"(12,102)\cup(2,12)"], ["(2,102)"]),
    ({"kind": E}, "set", r"\{1\pm\sqrt{5},-2\}", [r"\{-2, 1+\sqrt5, 1-\sqrt5\}", r"-2, 1\pm\sqrt5"], [r"-2, 1+\sqrt5"]),
    ({"kind": E}, "tuple", "(6,31,-1)", ["(6, 31, -1)", r"\left(6,31,-1\right)"], ["(31,6,-1)", r"\{6,31,-1\}"]),
    (
        {"kind": E},
        "matrix",
        r"\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix}",
        [r"\begin{bmatrix} -2 \\ -14 \\ -7 \end{bmatrix}", "(-2,-14,-7)"],
        [r"\begin{pmatrix} -2 \\ -14 \\ 7 \end{pmatrix}"],
    ),
    ({"kind": E}, "word", r"\text{even}", ["even", r"\textbf{even}", "Even"], ["odd"]),
    ({"kind": S}, "order", "1,-2", ["-2,1", r"1 \text{ and } -2", r"x=-2 \text{ or } x=1", r"\{1,-2\}"], ["1", "1,2"]),
    ({"kind": S}, "repeated", "16,3,1,1", ["1,1,3,16"], ["16,3,1", "16,16,3,1"]),
    ({"kind": S}, "plus or minus", r"1 \pm \sqrt{19}", [r"1-\sqrt{19}, 1+\sqrt{19}"], [r"1+\sqrt{19}"]),
    (
        {"kind": S},
        "tuples",
        "$(0,2),(0,-2),(4,23),(4,-23)$",
        [r"(4,-23),(4,23),(0,-2),(0,2)", r"(0,\pm 2),(4,\pm 23)"],
        ["(0,2),(0,-2),(4,23)", "(2,0),(0,-2),(4,23),(4,-23)"],
    ),
    ({"kind": S}, "named", r"$a=2$, $a=-6-4 \sqrt{2}$", [r"2, -6-4\sqrt2", r"a=-6-4\sqrt{2}, a=2"], [r"2, -6+4\sqrt2"]),
    (
        {"kind": S, "unit": r"^{\circ}"},
        "angles",
        r"$\angle B E A_{1}=90$,$\angle A E B_{1}=90$",
        ["90, 90", r"90^\circ, 90^\circ", r"\angle AEB_1=90, \angle BEA_1 = 90"],
        ["90", "90, 80"],
    ),
    ({"kind": S, "tolerance": 0.1}, "± 0.1", "1.0, 1.15", ["1.2, 1.05", "1.05, 1.1"], ["1.0, 1.5"]),
    ({"kind": L}, "letter", "B", ["B", "(B)", "b", "B.", r"\text{(B)}", "B) 12 m", "option B"], ["C", "A, B", "12 m"]),
    ({"kind": T}, "option", "(B)", ["B", "(b)", r"\text{(B)}"], ["(A)", "(B), (C)"]),
    (
        {"kind": T},
        "words",
        "yes, unknown, yes",
        ["Yes,unknown,yes", r"\text{yes, unknown, yes}"],
        ["yes, yes, unknown"],
    ),
    (
        {"kind": T},
        "brackets",
        "[Dan, Kyle, Jenny]",
        ["Dan, Kyle, Jenny", r"\text{[Dan, Kyle, Jenny]}"],
        ["[Kyle, Dan, Jenny]"],
    ),
    ({"kind": T}, "number", "418.0", ["418", "418.00"], ["417"]),
    ({"kind": T}, "thing", "1 egg", [r"\text{1 egg}", '"1 egg"'], ["1 spoon"]),
    ({"kind": T}, "date", "01-09-2016", [r"\text{01-09-2016}"], ["01-09-2017"]),
    ({"kind": T}, "underscore", "same_day, 06:24:24", [r"\text{same\_day, 06:24:24}"], ["same_day, 06:24:25"]),
]

LATEX = r"""
\frac \sqrt \text{ \left( \right) \pm \cdot \times 10^ e \% \$ \\ \{ \} ^ _ { } ( ) [ ] , ; . = < > + - * / ! | & ~ $
0 1 7 12 999 1e9 x y i and or yes B \circ cm meters \begin{pmatrix} \infty nan True \boxed{
""".split()  # noqa: SIM905 - as a list it fills a screen


Row = tuple[str, str, str, str, bool, bool]


def rows(forms: list[tuple[dict, str, str, list[str], list[str]]] = FORMS) -> list[Row]:
    """Kind, form, reference, what was written, whether it should be right, and whether it is graded so."""
    table = []
    for how, form, gold, right, wrong in forms:
        problem = Problem("form", "forms", "?", gold, **how)
        for written in [gold, *right, *wrong]:
            graded = grade_problem(rf"\boxed{{{written}}}", problem)
            table.append((how["kind"], form, gold, written, written not in wrong, graded))
    return table


def line(kind: str, form: str, gold: str, written: str, should: bool, graded: bool) -> str:
    """A line of the table."""
    name = {True: "right", False: "wrong"}
    gold, written = (f"`{text}`".replace("|", r"\|") for text in (gold, written))
    mark = name[graded] if graded == should else f"**{name[graded]}**"
    return f"| {kind} | {form} | {gold} | {written} | {name[should]} | {mark} |"


def fuzz(count: int, *, seed: int = 0) -> tuple[Counter[str], list[float]]:
    """Reasons and seconds of ``count`` random answers to the problems of ``FORMS``."""
    r, reasons, seconds = random.Random(seed), Counter[str](), []
    pieces = [*LATEX, "\0", "\ud800", "\u202e", "\u0665", "\u00bd", "\u2212", " ", "\n"]
    for _ in range(count):
        how, _, gold, right, wrong = r.choice(FORMS)
        known = r.choice([gold, *right, *wrong])
        cut = r.randrange(len(known) + 1)
        noise = "".join(r.choices(pieces, k=r.randint(0, 6))) * r.choice([1] * 19 + [50])
        text = r"\boxed{" + r.choice([noise, known[:cut] + noise + known[cut:], known[:cut]]) + "}"
        start = time.monotonic()
        reasons[grade_problem_details(text, Problem("fuzz", "forms", "?", gold, **how)).reason] += 1
        seconds.append(time.monotonic() - start)
    return reasons, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fuzz", type=int, default=0, metavar="N", help="grade N random answers instead")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.fuzz:
        reasons, seconds = fuzz(args.fuzz, seed=args.seed)
        print(f"{args.fuzz:,} answers in {sum(seconds):.0f} s, the slowest {max(seconds):.1f} s: {dict(reasons)}")
        return
    table = rows()
    print("| kind | form | reference | written | should be | graded |\n|---|---|---|---|---|---|")
    print("\n".join(line(*row) for row in table))
    print(f"\n{sum(should == graded for *_, should, graded in table)} of {len(table)} as they should be.")


if __name__ == "__main__":
    main()
