"""The site in a real Chromium: its search, its colours, a phone's width, and no other host.

Asked for by name: ``pytest -m page tests/test_site_page.py``. It builds the site into a folder of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_site import module

pytest.importorskip("mkdocs", reason="mkdocs is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from measure_page import CHROMIUM, FLAGS, WAIT, serve

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the site cannot be tried in a browser")
    folder = tmp_path_factory.mktemp("site")
    build = module("build")
    assert build.build(folder) == 0
    assert build.faults(folder) == []
    return folder


@pytest.fixture(scope="module")
def page(site: Path):
    from playwright.sync_api import sync_playwright

    faults: list[str] = []
    with serve(site) as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(base_url=address, color_scheme="light")
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if address not in request.url else None)
        yield page
        assert [fault for fault in faults if not fault.startswith("data:")] == []
        browser.close()


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
    page.set_viewport_size({"width": 360, "height": 800})
    wide = []
    for path in sorted(site.rglob("*.html")):
        page.goto("/" + path.relative_to(site).as_posix())
        if page.evaluate("document.documentElement.scrollWidth") > 360:
            wide.append(path.relative_to(site).as_posix())
    assert wide == []
