"""The site in a real Chromium: the relay of its first screen, its search, its colours, a phone, and no other host.

Asked for by name: ``pytest -m page tests/test_site_page.py``. It builds page and site into folders of its own, and
leaves screenshots in ``runs/browser``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_layering import ROOT
from test_site import module

pytest.importorskip("mkdocs", reason="mkdocs is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from build_page import PAIRS
from build_page import build as build_page
from measure_page import CHROMIUM, FIRST, FLAGS, WAIT, serve

pytestmark = pytest.mark.page
SHOTS = ROOT / "runs" / "browser"
PHONE, SCREEN = {"width": 360, "height": 800}, {"width": 1366, "height": 900}
# What a reader looks at first: the relay, numbers, formulas, a lesson with figures, the reference.
LOOKED_AT = ("", "results/", "method/", "lessons/14_baselines/", "api/relay/")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the site cannot be tried in a browser")
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine: the libraries of the page's relay cannot be fetched")
    folder, relay = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("relay") / "page"
    build_page(relay, list(PAIRS), 20)
    build = module("build")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RELAYLAB_PAGE", str(relay))
        assert build.build(folder) == 0
    assert build.faults(folder) == []
    return folder


@pytest.fixture(scope="module")
def page(site: Path):
    from playwright.sync_api import sync_playwright

    faults: list[str] = []
    with serve(site) as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(base_url=address, color_scheme="light", viewport=SCREEN)
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if address not in request.url else None)
        yield page
        assert [fault for fault in faults if not fault.startswith("data:")] == []
        browser.close()


def test_the_first_screen_is_a_relay_that_runs(page):
    """Nothing is clicked for the first answer. A forbidden call then loses it."""
    page.goto("/")
    relay = page.frame_locator("#relay-in-the-page")
    relay.locator(FIRST).filter(has_text="correct").wait_for()
    assert "answered" in relay.get_by_label("Calls").last.locator("tbody tr").first.inner_text()
    frame, screen = page.locator("#relay-in-the-page").bounding_box(), page.viewport_size
    assert frame["y"] < screen["height"] / 2, "on the first screen"
    relay.get_by_role("button", name="forbid").first.click()
    relay.locator(FIRST).filter(has_text="wrong").wait_for()


def test_screenshots_in_both_colours_and_of_a_phone(page):
    """Kept for a person to look at. A page with a part that is wider than a phone is caught below."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.goto("/")
    for kind, size, scheme in (("light", SCREEN, "light"), ("dark", SCREEN, "dark"), ("phone", PHONE, "light")):
        reader = page.context.browser.new_page(base_url=page.url, color_scheme=scheme, viewport=size)
        for path in LOOKED_AT:
            reader.goto(f"/{path}")
            if not path:
                reader.frame_locator("#relay-in-the-page").locator(FIRST).wait_for(timeout=WAIT)
            name = path.strip("/").replace("/", "-") or "start"
            if path in ("results/", "lessons/14_baselines/") and reader.locator(".rl-fig").count():
                reader.locator(".rl-fig .main-svg").last.scroll_into_view_if_needed()
            reader.screenshot(path=SHOTS / f"site-{name}-{kind}.png")
            wanted = "slate" if scheme == "dark" else "default"
            assert reader.locator("body").get_attribute("data-md-color-scheme") == wanted
        reader.close()


@pytest.mark.parametrize("path", ["results/", "lessons/04_rewards/"])
def test_a_figure_is_as_wide_as_its_text(page, path):
    page.goto(f"/{path}")
    figure = page.locator(".lesson-output .rl-fig").first
    if path.startswith("lessons") and not figure.count():
        pytest.skip("the lessons are not executed: make notebooks")
    figure.locator(".main-svg").first.wait_for()
    wide = figure.locator(".main-svg").first.bounding_box()["width"]
    assert wide > 0.9 * page.locator("article p").first.bounding_box()["width"]


def test_a_word_is_found_and_its_page_opens(page):
    page.goto("/")
    page.get_by_placeholder("Search").click()
    page.keyboard.type("speculative decoding")
    page.locator(".md-search-result__item a", has_text="What a relay costs").first.click()
    page.wait_for_url("**/lessons/15_cost/**")
    assert "speculative decoding" in page.locator("article").inner_text()


def test_light_and_dark(page):
    page.goto("/method/")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.locator("label[title='Dark colours']").click()
    page.locator("label[title='Light colours']").wait_for()
    assert page.evaluate(colour) != light
    page.locator("label[title='Light colours']").click()
    page.locator("label[title='Dark colours']").wait_for()
    assert page.evaluate(colour) == light


def test_every_page_fits_a_phone(page, site):
    page.set_viewport_size(PHONE)
    wide = []
    for path in sorted(site.rglob("*.html")):
        page.goto("/" + path.relative_to(site).as_posix())
        if page.evaluate("document.documentElement.scrollWidth") > PHONE["width"]:
            wide.append(path.relative_to(site).as_posix())
    assert wide == []
