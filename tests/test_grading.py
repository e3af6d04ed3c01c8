"""Grading: the right answer is found, and no text can raise, hang, or exhaust memory."""

import json
import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaylab.tasks import verifier
from relaylab.tasks.grading import Grade, extract_boxed, grade, grade_details, grade_problem
from relaylab.tasks.suites import Problem

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from grading_forms import LATEX

SLACK = 15.0  # seconds that a busy machine may add to a bounded time


def boxed(answer: str) -> str:
    return rf"So it is \boxed{{{answer}}}."


BOXES = {
    None: ["no box", r"\boxed{", r"put it in \boxed and stop", r"\boxedx{7}"],
    "": [r"\boxed{}"],
    "1": [r"\boxed{1} then \boxed{2"],
    "2": [r"\boxed{1} then \boxed{2}"],
    "5": [
        r"\boxed{\boxed{5}}",
        r"\boxed{x = \boxed{5} m}",
        r"x \\\boxed{5}",
        r"x \\boxed{5}",
        "\\boxed\n{5}",
        r"$\boxed 5$",
    ],
    "-3/4": [r"\boxed -3/4 is it"],
    "42": [r"\boxed 42.", r"\fbox{42}", r"} { \boxed{42} }"],
    "x": [r"\boxed x"],
    r"\{1, 2)": [r"\boxed{\{1, 2)}"],
    r"a \\{b}": [r"\boxed{a \\{b}}"],
}


@pytest.mark.parametrize(("expected", "text"), [(box, text) for box, texts in BOXES.items() for text in texts])
def test_extract_boxed(text, expected):
    assert extract_boxed(text) == expected


def reference_extract(text: str) -> str | None:
    """The definition, in quadratic time: the last box from whose brace the depth comes back to zero."""
    for start in reversed(range(len(text))):
        if text.startswith(r"\boxed{", start):
            depth, i = 0, start + 6
            while i < len(text):
                if text[i] == "\\":
                    i += 2
                    continue
                depth += (text[i] == "{") - (text[i] == "}")
                if depth == 0:
                    return text[start + 7 : i]
                i += 1
    return None


@given(st.lists(st.sampled_from([r"\boxed{", "{", "}", r"\{", r"\}", "a", "5 "]), max_size=14).map("".join))
def test_extract_boxed_follows_its_definition(text):
    assert extract_boxed(text) == reference_extract(text)


@settings(max_examples=50)
@given(st.text(max_size=40) | st.text(alphabet="\\boxedf{} 5", max_size=60))
def test_extract_boxed_takes_any_text(text):
    found = extract_boxed(text)
    assert found is None or found in text


@pytest.mark.parametrize(
    "piece", [r"\boxed{", r"\boxed{5}", r"\boxed 1", "\\boxed" + " " * 9, "{", "}", "\\", "\\\\{", "9", "\\boxed{}{"]
)
def test_extract_boxed_is_linear(piece):
    def seconds(size: int) -> float:
        start = time.process_time()
        extract_boxed(piece * (size // len(piece)))
        return time.process_time() - start

    assert seconds(800_000) < 1.0 + 40 * seconds(100_000)  # quadratic time would be 64 times, and minutes


@pytest.mark.parametrize(
    ("answer", "reference", "reason"),  # more of them are in grading_forms.txt
    [
        ("007", "7", "equal"),
        ("-0", "0", "equal"),
        ("10^{100}", "1" + "0" * 100, "equal"),
        (r"2^{1009}", r"$2^{1009}$", "equal"),
        ("Evelyn", r"\text{Evelyn}", "equal"),
        ("-5", "5", "unequal"),
        ("10^{100}", "10^{101}", "unequal"),
        ("123456789012345678", "123456789012345679", "unequal"),
        ("x+1", "x+2", "unequal"),
        ("wehttaM", "Matthew", "unequal"),
    ],
)
def test_grades(answer, reference, reason):
    assert grade_details(boxed(answer), reference) == Grade(reason == "equal", answer, reason)


def test_reasons():
    assert grade_details("It is 5.", "5") == Grade(False, None, "no_box")
    assert grade_details(boxed("9" * 3000), "5").reason == "too_long"
    assert grade_details(boxed("5"), "9" * 3000).reason == "too_long"
    assert grade_details(boxed("((("), "x").reason == "unparsable"
    assert grade_details(boxed(""), "").reason == "unparsable"
    assert grade_details(boxed("12 m"), "B", kind="letter").reason == "unparsable"
    with pytest.raises(ValueError, match=r"a: unknown kind of answer 'essay'; it is one of expression, number"):
        grade_problem(boxed("5"), Problem("a", "mine", "?", "5", kind="essay"))


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("text", [boxed("5"), boxed("x"), "no box"])
def test_a_tolerance_that_cannot_be_is_named(text, tolerance):
    with pytest.raises(ValueError, match=rf"^the tolerance is {tolerance}; it must be finite"):
        grade_details(text, "5", tolerance=tolerance)
    with pytest.raises(ValueError, match=rf"^a: the tolerance is {tolerance}"):
        grade_problem(text, Problem("a", "mine", "?", "5", tolerance=tolerance))


def test_plain_numbers_are_fast_and_need_no_worker():
    text = "Tiles of a row: 12+34=46.\nAll: 46*12=552.\nThe tiles left: 552-2=550.\nThe answer is \\boxed{550}."
    verifier._stop()
    start = time.process_time()
    assert all(grade(text, "550") for _ in range(4000))
    assert time.process_time() - start < 4000 / 20_000
    assert verifier._worker is None


HOSTILE = [
    "9^9^9^9",
    "10^{10^{10}}",
    "(10^9)!",
    r"\sum_{i=1}^{10^{12}} \frac{1}{i^2}",
    "(x+1)^{100000}",
    r"\begin{pmatrix}" + r"\\".join("&".join("1" * 300) for _ in range(300)) + r"\end{pmatrix}",
    "{" * 100_000 + "}" * 100_000,
    "(" * 100_000,
    "(" * 900 + ")" * 900,
    r"\boxed{" * 100_000,
    r"\frac" * 300,
    "9" * 1_000_000,
    "1e999999999",
    "-" * 500 + "5",
    "$" * 1500,
    "|" * 300,
    "\0",
    "\ud800",
    "\\",
    "\r\n\u2028\u2029",
]
MORE = [
    "2^{4000000000}",
    "5" + "!" * 20,
    r"\binom{10^9}{5\cdot 10^8}",
    r"\prod_{i=1}^{10^9} i",
    r"\int_0^1 \sin(x^x) dx",
    r"\sqrt{" * 200 + "2" + "}" * 200,
    "=".join("x" * 100),
    "9^{9^{9^9}}",
    "{" * 900 + "1" + "}" * 900,
]


@pytest.mark.parametrize(
    "answer",
    [*HOSTILE, *(pytest.param(answer, marks=pytest.mark.slow) for answer in MORE)],
    ids=lambda answer: ascii(answer[:24]),
)
def test_hostile_answers(answer, impatient):
    start = time.monotonic()
    result = grade_details(boxed(answer), "5")
    assert not result.correct
    assert time.monotonic() - start < verifier.CPU_SECONDS + SLACK
    assert grade(boxed("x+x"), "2x")  # and the next answer is graded as ever


def test_hostile_references(impatient):
    assert grade_details(boxed(r"\frac{1}{2}"), r"\prod_{i=1}^{10^9} i").reason == "timeout"


PIECES = [*LATEX, "\0", "\ud800", "\u202e", "\u0665", "\u00bd", "\u221e"]


@settings(max_examples=120)
@given(
    st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.text(max_size=8),
    st.sampled_from(["expression", "number", "letter", "text"]),
)
def test_any_answer_against_any_reference(answer, reference, kind):
    result = grade_details(rf"\boxed{{{answer}}}", reference, kind=kind)
    assert result.correct == (result.reason == "equal")


def test_threads_share_a_worker():
    def work(k: int) -> bool:
        return all(grade(boxed(f"x+{i}+{k}"), f"{i + k}+x") for i in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_a_dead_worker_is_replaced():
    assert grade(boxed("x+y"), "y+x")
    verifier._worker.process.kill()
    verifier._worker.process.wait()
    assert grade(boxed("x+z"), "z+x")


@pytest.mark.parametrize(("kills", "reason"), [(1, "equal"), (2, "timeout")])
def test_a_worker_that_the_system_kills_is_asked_once_more(monkeypatch, kills, reason):
    left, ask = [True] * kills, verifier._Worker.ask

    def killed(self, question, seconds):
        if question and left:
            left.pop()
            self.process.kill()
        return ask(self, question, seconds)

    monkeypatch.setattr(verifier._Worker, "ask", killed)
    assert verifier.ask_math_verify.__wrapped__("x+y", "y+x") == reason
    assert not left


def test_an_interrupt_leaves_no_reply_behind(monkeypatch):
    assert grade(boxed("a+b"), "b+a")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verifier._Worker, "ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            grade(boxed("a+c"), "c+a")
    assert verifier._worker is None
    assert grade(boxed("a+d"), "d+a")


def run_script(tmp_path, code: str) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=100)


def test_a_script_without_main_guard_grades_prints_nothing_more_and_leaves_no_process(tmp_path):
    done = run_script(
        tmp_path,
        r"""
        from relaylab.tasks import grading, verifier
        print(grading.grade(r"\boxed{x+x}", "2x"), verifier._worker.process.pid)
        """,
    )
    answer, pid = done.stdout.split()
    assert (done.returncode, answer, done.stderr) == (0, "True", "")
    if os.name == "posix":
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_grades_with_its_own_worker(tmp_path):
    done = run_script(
        tmp_path,
        r"""
        import os
        from relaylab.tasks import grading, verifier
        assert grading.grade(r"\boxed{x+x}", "2x")
        verifier._lock.acquire()  # a thread may hold it at the fork
        child = os.fork()
        if child:
            verifier._lock.release()
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert grading.grade(r"\boxed{y+y}", "2y")
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_without_math_verify_the_error_says_what_to_install(tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('No module named math_verify')")
    done = run_script(
        tmp_path,
        r"""
        from relaylab.tasks.grading import grade
        assert grade(r"\boxed{5}", "5")
        grade(r"\boxed{x+x}", "2x")
        """,
    )
    assert "RuntimeError: the grading worker did not start: ImportError" in done.stderr
    assert "pip install" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit on memory")
def test_a_worker_short_of_memory_answers_and_retires():
    code = "from relaylab.tasks import verifier; verifier.MEMORY_BYTES = 100 << 20; verifier._serve()"
    questions = [None, ["2^{1600000000}", "x", 0, 20], ["never read", "x", 0, 20]]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="".join(json.dumps(question) + "\n" for question in questions),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    hello, reply = map(json.loads, done.stdout.splitlines())
    assert hello == {"error": ""}
    assert reply["reason"] in ("unequal", "unparsable")
    assert reply["last"]
