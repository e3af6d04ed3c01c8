"""The relay in a page (web/), in a real Chromium: Python's tokens, forks and calls; its controls; no other host.

Asked for by name: ``pytest -m page``. It installs the page's npm packages, and leaves screenshots in ``runs/browser``.
"""

from __future__ import annotations

import random
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from real_jupyterlab import CUT_OFF
from test_layering import ROOT

from relaylab.relay.config import RelayConfig
from relaylab.relay.pair import Pair, load_pair
from relaylab.relay.sequence import Sequence
from relaylab.relay.teachers import TeacherOutput
from relaylab.tasks.suites import ALL_SUITES, SUITES, mixture, problem
from relaylab.trace import Trace

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from build_page import PAIRS, build
from measure_page import CHROMIUM, FIRST, FLAGS, WAIT, load_once, serve

# One page for all, and the last test looks at all that was asked for: the file runs in one worker.
pytestmark = pytest.mark.page

SHOTS = ROOT / "runs" / "browser"
COUNT = 100  # problems a pair
# What a page does with one answer, and with a list of them.
DECODE = """async ([number, jobs]) => {
  const { loadPair } = await import("./runtime.js");
  const { fork, relay, Sequence } = await import("./relay.js");
  const { grade, withoutCalls } = await import("./page.js");
  const { text, student, teacher, config } = await loadPair(number);
  const run = async (s, question) => {
    for await (const _ of relay(s, text.promptIds(question), student, teacher));
    return s;
  };
  const found = [];
  for (const { question, answer, at, change } of jobs) {
    let s = await run(new Sequence(text, student.endIds, config), question);
    if (at !== null) s = await run(fork(s, at, change), question);
    const calls = s.calls.map((c) => [c.start, c.end, c.requested, c.granted, c.delivered, c.status, c.forced]);
    found.push([s.ids, s.source.join(""), s.pieces, calls, s.stop, grade(withoutCalls(s), answer) === "right"]);
  }
  return found;
}"""
ENCODE = """async (texts) => {
  const { text } = await (await import("./runtime.js")).loadPair(0);
  return texts.map((one) => [text.encode(one), text.promptIds(one)]);
}"""
DRIVE = """async (scripts) => {
  const { text, student } = await (await import("./runtime.js")).loadPair(0);
  const { Sequence } = await import("./relay.js");
  return scripts.map(({ config, steps }) => {
    const s = new Sequence(text, student.endIds, config);
    for (const [token, answer, finish] of steps) {
      if (s.stop) break;
      s.writeStudent(token);
      if (!s.waiting) continue;
      s.endStudentTurn();
      s.writeTeacher(answer.slice(0, s.waiting.granted), finish);
    }
    const calls = s.calls.map((c) => [c.start, c.end, c.requested, c.granted, c.delivered, c.status, c.forced]);
    return [s.ids, s.source.join(""), s.pieces, calls, s.stop, s.view];
  });
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The page, in a folder below the server's root, as a site would have it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the page cannot be tried in a browser")
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine: the page's libraries cannot be fetched")
    root = tmp_path_factory.mktemp("site")
    build(root / "some" / "where", list(PAIRS), 20)
    return root


@pytest.fixture(scope="module")
def heard() -> dict[str, list[str]]:
    """What the console said, and the addresses that were asked for."""
    return {"console": [], "requests": []}


@pytest.fixture(scope="module")
def page(site: Path, heard: dict[str, list[str]]):
    from playwright.sync_api import sync_playwright

    with serve(site) as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: heard["console"].append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard["console"].append(str(error)))
        page.on("request", lambda request: heard["requests"].append(request.url))
        page.goto(f"{address}some/where/")
        page.locator(FIRST).wait_for()
        page.get_by_text("Pair, sampling, limits").click()
        yield page
        browser.close()


def test_the_first_question_needs_its_call_and_other_pairs_can_be_chosen(page):
    """Runs before all others that ask something."""
    assert "answered" in page.get_by_label("Calls").last.locator("tbody tr").first.inner_text()
    asked = problem("tiles", 0)
    pairs = [load_pair(*(name.split("=") if "=" in name else [name])) for name in PAIRS[:3]]
    right = [pair.solve(asked).correct for pair in pairs]
    assert right[0]
    assert not right[2], "alone"
    for number in (0, 1, 2, 0):
        outcome = "correct" if right[number] else "wrong"
        page.get_by_label("pair").select_option(index=number)
        page.get_by_role("button", name="Ask this question").click()
        shown = page.get_by_label("pair").locator("option").nth(number).inner_text().removesuffix(" alone")
        page.locator(FIRST).filter(has_text=shown).filter(has_text=f" {outcome}, ").wait_for()


@pytest.fixture(scope="module", params=[0, 1], ids=PAIRS[:2])
def decoded(request) -> tuple[int, Pair, list[Trace]]:
    """A pair of the page, and its greedy answers in Python."""
    pair = load_pair(PAIRS[request.param])
    chosen = islice(mixture(split="test", suites=ALL_SUITES if request.param == 0 else SUITES), COUNT)
    return request.param, pair, pair.decode(list(chosen), progress=False)


def facts(trace: Trace) -> list[Any]:
    calls = [[c.start, c.end, c.requested, c.granted, c.delivered, c.status, c.forced] for c in trace.calls]
    return [trace.completion_ids, trace.source, trace.pieces, calls, trace.stop]


def job(trace: Trace, at: int | None = None, **change: Any) -> dict[str, Any]:
    return {"question": trace.prompt, "answer": trace.problem["answer"], "at": at, "change": change}


def test_greedy_answers_and_grades_are_those_of_python(page, decoded):
    number, _, traces = decoded
    found = page.evaluate(DECODE, [number, [job(t) for t in traces]])
    assert any(t.answered for t in traces)
    assert 0 < sum(bool(t.correct) for t in traces) < COUNT
    assert found == [[*facts(t), t.correct] for t in traces]


def test_forced_resized_and_forbidden_calls_are_those_of_python(page, decoded):
    number, pair, traces = decoded
    quiet = [t for t in traces if not t.calls][:6] + [t for t in traces if t.answered][:4]
    calling = [t for t in traces if t.answered][:8]
    forks = [(t, len(t.source) // 2, {"call": 3 + k}) for k, t in enumerate(quiet)]
    forks += [(t, t.calls[0].start, {"call": 2}) for t in calling[:4]]
    forks += [(t, t.calls[0].start, {"forbid": True}) for t in calling]
    forks += [(t, t.calls[0].end, {}) for t in calling[:2]]  # the call is requested anew
    forks += [(t, t.calls[0].end + 1, {}) for t in calling[:2]]  # a cut within the teacher's answer
    expected = []
    for trace, at, change in forks:
        stream = pair.relay().fork(trace, at, **change)
        for _ in stream:
            pass
        expected.append(facts(stream.traces[0]))
    found = page.evaluate(DECODE, [number, [job(t, at, **change) for t, at, change in forks]])
    assert calling
    assert [answer[:5] for answer in found] == expected


@pytest.mark.parametrize("number", [2, 3])
def test_a_student_alone_writes_no_call(page, number):
    pair = load_pair(PAIRS[number].partition("=")[0], "none")
    chosen = islice(mixture(split="test"), 10)
    traces = pair.decode(list(chosen), progress=False)
    found = page.evaluate(DECODE, [number, [job(t) for t in traces]])
    assert found == [[*facts(t), t.correct] for t in traces]


def test_texts_have_pythons_tokens(page):
    """What looks like a special token, characters of several bytes, and runs of spaces among them."""
    r, engine = random.Random(0), load_pair(PAIRS[0]).student
    parts = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<call>", "</call>", "tiles", " It's", "12", "é", "e\u0301"]
    parts += [
        "日本",
        "🧩",
        "\n",
        "\r\n",
        "\t",
        "  ",
        "\u00a0",
        "\ufeff",
        "\u200d",
        "<",
        ">=",
        "\\boxed{",
        "}",
        "ſ",
        "½",
    ]
    texts = ["".join(r.choices(parts, k=r.randint(1, 12))) for _ in range(200)]
    expected = [[engine.text.encode(t), engine.prompt_ids([{"role": "user", "content": t}])] for t in texts]
    assert page.evaluate(ENCODE, texts) == expected


def test_sequences_follow_pythons_rules(page):
    """Random tokens of a student, broken commands and cut characters among them, under random caps."""
    r, engine = random.Random(1), load_pair(PAIRS[0]).student
    fragments = ["<call>", "</call>", "<call>3</call>", "<call> 12 </call>", "<call></call>", "<call>0</call>", "<ca"]
    fragments += ["<call>x</call>", "<call>9999999999999</call>", "<call><call>2</call>", "ll>", "é", "🧩", "a", "\n"]
    fragments += ["<call>1</call><call>2</call>", "<call>2</call>=", "<call>" + "7" * 33 + "</call>", "x = ", "5"]
    any_ids = range(len(engine.text.bytes))
    scripts: list[dict[str, Any]] = []
    for _ in range(300):
        tokens: list[int] = []
        while len(tokens) < 60:
            tokens += engine.text.encode(r.choice(fragments)) if r.random() < 0.8 else [r.choice(any_ids)]
        caps = {"maxCalls": [None, 1, 2], "maxCallTokens": [None, 2], "maxTeacherTokens": [None, 4]}
        config = {name: r.choice(values) for name, values in caps.items()}
        config |= {"maxTokens": r.choice([20, 200]), "fixedCallTokens": r.choice([None, None, 5]), "temperature": 0}
        config["callEnd"] = "tokens" if config["fixedCallTokens"] else r.choice(["tokens", "line"])
        steps = [[t, r.choices(any_ids, k=r.randint(0, 16)), "stop" if r.random() < 0.05 else "length"] for t in tokens]
        for step in steps if config["callEnd"] == "line" else ():  # a teacher ends its turn there
            if line := next((k for k, i in enumerate(step[1], 1) if b"\n" in engine.text.bytes[i]), 0):
                step[1:] = step[1][:line], "length"
        scripts.append({"config": config, "steps": steps})
    names = {
        "maxTokens": "max_tokens", "maxCalls": "max_calls", "maxCallTokens": "max_call_tokens",
        "maxTeacherTokens": "max_teacher_tokens", "fixedCallTokens": "fixed_call_tokens", "temperature": "temperature",
        "callEnd": "call_end",
    }  # fmt: skip
    expected = []
    for script in scripts:
        config = RelayConfig(**{names[name]: value for name, value in script["config"].items()})
        s = Sequence(0, [], [1], student=engine, config=config, seed=0, shared=True)
        for token, answer, finish in script["steps"]:
            if s.turn == "done":
                break
            s.write_student(token)
            if s.turn == "teacher":
                ids = tuple(answer[: s.start_teacher_turn().n])
                data = b"".join(engine.text.bytes[i] for i in ids)
                s.write_teacher(TeacherOutput(data.decode(errors="replace"), finish, ids, len(ids)), "random")
        expected.append([*facts(s.trace("", "")), [i for part in s.view.segments for i in part.ids or ()]])
    statuses = {call[5] for record in expected for call in record[3]}
    assert statuses >= {"answered", "refused", "failed", "empty", "malformed", "zero", "too_large", "unclosed"}
    assert page.evaluate(DRIVE, scripts) == expected


def says(page, text: str) -> None:
    page.locator(".rl-answer .rl-status", has_text=text).wait_for()


def ask(page, question: str) -> None:
    page.get_by_label("question, picked or typed (ctrl+enter asks)").fill(question)
    page.get_by_label("question, picked or typed (ctrl+enter asks)").press("Control+Enter")
    says(page, "Original. ")


def test_a_call_is_forced_and_forbidden_by_keys(page):
    press, cells = page.keyboard.press, page.get_by_label("Calls").last.locator("tbody tr")
    page.get_by_role("button", name="Ask this question").click()
    says(page, "Original. ")
    before = cells.count()
    page.locator(".rl-answer [role=option]").first.focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):  # the third token; the focus goes to n
        press(key)
    press("Control+a")
    page.keyboard.type("6")
    page.get_by_role("button", name="Force a call here").press("Enter")
    says(page, "Fork 1: a call for 6 at token 3. ")
    row = cells.nth(before).locator("th, td").all_inner_texts()
    assert row == ["Fork 1, call 1", "3", "6", "6", "6", "answered"]
    strip = page.locator(".rl-answer .rl-strip").last
    assert strip.locator(".rl-t").count() >= 6
    assert strip.locator(".rl-c").first.get_attribute("data-call") == "1"
    strip.locator(".rl-c").first.click()
    page.get_by_role("button", name="Forbid this call").press("Enter")
    says(page, "Fork 2: call 1 forbidden. ")
    assert not any(text.startswith("Fork 2") for text in cells.all_inner_texts() if text.split("\t")[1] == "3")


def test_samples_are_a_function_of_the_seed(page):
    def sample(seed: int) -> str:
        page.get_by_label("seed").fill(str(seed))
        page.get_by_role("button", name="Ask this question").click()
        says(page, "Original. ")
        return page.locator(".rl-answer .rl-strip").first.inner_text()

    greedy = sample(1)
    page.get_by_label("temperature").fill("1")
    texts = [sample(seed) for seed in (1, 2, 3, 4, 1)]
    page.get_by_label("temperature").fill("0")
    assert texts[0] == texts[4]
    assert len({greedy, *texts}) > 2


def test_texts_never_become_markup_and_errors_name_the_remedy(page):
    ask(page, "<img src=x onerror=document.title='no'><script>document.title='no'</script>\u202e?")
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "A relay in this page"
    assert "your own question: not graded" in page.locator("main").inner_text()
    page.get_by_label("question, picked or typed (ctrl+enter asks)").fill(" ")
    page.get_by_role("button", name="Ask this question").click()
    page.get_by_text("There is no question: type one, or pick another one").wait_for()
    page.get_by_label("pair").select_option(index=3)
    page.get_by_role("button", name="Pick the next question").click()
    page.get_by_role("button", name="Ask this question").click()
    says(page, "Original. ")
    page.locator(".rl-answer [role=option]").first.click()
    page.get_by_role("button", name="Force a call here").click()
    says(page, "this student is alone; choose a pair with a teacher")


@pytest.fixture
def short(page):
    """The page with answers of 40 tokens at most."""
    other = page.context.browser.new_page()
    other.set_default_timeout(WAIT)

    def shorter(route) -> None:
        settings = route.fetch().json()
        for pair in settings["pairs"]:
            pair["config"]["maxTokens"] = 40
        route.fulfill(json=settings)

    other.route("**/page.json", shorter)
    other.goto(page.url)
    says(other, "Original. ")
    yield other
    other.close()


def change(page, token: int, name: str = "Force a call here", run: int = 0) -> None:
    page.locator(".rl-run").nth(run).locator("[role=option]").nth(token).click()
    page.get_by_role("group", name="What if").get_by_text(name).click()


WAITING = """async () => {
  const { teacher } = await (await import("./runtime.js")).loadPair(0);
  const { next } = teacher;
  window.looks = [];
  teacher.next = async (slot) => {
    while (!document.querySelector("[aria-busy=true] [data-call]")) await new Promise(requestAnimationFrame);
    looks.push(...[...document.querySelectorAll("[aria-busy=true] [data-call]")].map((e) => e.dataset.call));
    looks.push(...[...document.querySelectorAll("[aria-busy=true] .rl-lost")].map((e) => e.className));
    return next.call(teacher, slot);
  };
}"""
BROKEN = """async () => {
  const { student } = await (await import("./runtime.js")).loadPair(0);
  student.next = async () => { throw new Error("the model broke"); };
}"""


def test_calls_on_the_way_without_room_resized_and_broken_off(short):
    change(short, 35)
    says(short, "✗ no room for a call at token 36: the limit is 40 tokens")
    assert short.locator(".rl-run").count() == 1
    short.evaluate(WAITING)
    change(short, 5)
    says(short, "Fork 1: a call for 8 at token 6. ")
    assert set(short.evaluate("looks")) == {"1"}  # neither a cross nor a wavy line, while it is answered
    third = short.locator(".rl-run").nth(1).locator(".rl-t").nth(2).evaluate("(e) => e.rlIndex")
    change(short, third, "Change its n", run=1)
    says(short, "Fork 2: call 1 asks for 8, not 8. ")
    short.evaluate(BROKEN)
    change(short, 5)
    says(short, "✗ the model broke")
    assert short.locator(".rl-run").count() == 4
    assert short.get_by_role("button", name="Ask this question").is_enabled()


def test_nothing_is_forked_while_another_pair_loads(short):
    answer, inert = short.locator(".rl-answer"), []

    def look(route) -> None:
        inert.append(answer.evaluate("(e) => e.inert"))
        route.continue_()

    short.route("**/models/*", look)
    short.get_by_text("Pair, sampling, limits").click()
    short.get_by_label("pair").select_option(index=1)
    short.get_by_role("button", name="Ask this question").click()
    short.locator(FIRST).filter(has_text=PAIRS[1]).wait_for()
    assert set(inert) == {True}
    assert not answer.evaluate("(e) => e.inert")


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)])
def test_pictures(page, theme, width):
    page.get_by_label("pair").select_option(index=0)
    page.get_by_role("button", name="Ask this question").click()
    says(page, "Original. ")
    page.locator(".rl-answer [role=option]").nth(1).click()
    page.get_by_role("button", name="Force a call here").click()
    says(page, "Fork 1: a call for ")
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 1000})
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SHOTS / f"page-{theme}-{width}.png"), full_page=True)
    assert page.locator("main").evaluate(CUT_OFF) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_loop_is_short_and_the_page_is_light(page, heard):
    """That the first relay is under 3 s after the load is measured by ``web/measure_page.py``: no test has a clock."""
    assert len((ROOT / "web" / "relay.js").read_text(encoding="utf-8").splitlines()) <= 300
    sizes, _ = load_once(page.context.browser, page.url)
    assert 5e6 < sum(sizes.values()) < 15e6


def test_nothing_went_wrong_and_no_other_host_was_asked(page, heard):
    """Runs last: of all that was done above."""
    own = page.url
    assert own.endswith("/some/where/")
    assert heard["console"] == []
    assert [url for url in heard["requests"] if not url.startswith((own, "data:"))] == []
    assert len(heard["requests"]) < 40
