"""A real JupyterLab on the loopback, and what tests do in its pages: run all, save, change theme and size, press tab.

Its settings, workspaces and runtime files are in a folder of the test's; nothing of the user's is read or changed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
# An output that is an exception. JupyterLab 4.6 shows it as stderr, whose name of the exception is red.
ERROR = '[data-mime-type$="jupyter.error"],[data-mime-type$="jupyter.stderr"]:has(.ansi-red-fg)'
SECONDS = 240  # for a server or a kernel to start: generous, since the machines that run tests are busy
SETTINGS = {
    # Nothing that looks for news or updates: there may be no network, and it would stand in the console as an error.
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # All cells are drawn, so that a screenshot of the whole notebook has them.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
# Controls that can be used now, in their order; the first one gets the focus. Returns their names.
CONTROLS = """(view) => {
  const all = "button:enabled, select:enabled, input:enabled, textarea:enabled, summary, [tabindex='0']";
  view.rlControls = [...view.querySelectorAll(all)].filter((e) => e.checkVisibility());
  view.rlControls[0].focus();
  return view.rlControls.map((e) => e.ariaLabel || e.closest("label")?.innerText || e.innerText || e.tagName);
}"""
# Of what has the focus; a select would go to what begins with that letter.
TAKES_NO_TEXT = "() => !document.activeElement.matches('select, textarea, input[type=number]')"
# What reaches over the right edge of a view and is in nothing that scrolls.
CUT_OFF = """(view) => {
  const edge = view.getBoundingClientRect().right;
  const scrolls = (e) => e !== view && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const over = (e) => e.getBoundingClientRect().right > edge + 1 && e.checkVisibility() && !scrolls(e.parentElement);
  return [...view.querySelectorAll("*")].filter(over).map((e) => e.outerHTML.slice(0, 200));
}"""

# Texts that are fainter than WCAG 2.2 allows (4.5:1; large ones 3:1), and how many were measured. What is folded is
# opened for the time. Shapes behind a text of an SVG do not count, nor do the shadows of what scrolls.
FAINT = """(view) => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => {
    const a = top[3] + under[3] * (1 - top[3]);
    const mix = (k) => (a ? (top[k] * top[3] + under[k] * under[3] * (1 - top[3])) / a : 0);
    return [mix(0), mix(1), mix(2), a];
  };
  const probe = document.body.appendChild(Object.assign(document.createElement("i"), { style: "background: Canvas" }));
  const canvas = rgba(getComputedStyle(probe).backgroundColor);
  probe.remove();
  // What is seen of a color that stands in an element: its backgrounds and opacities, up to the page's.
  const seen = (color, element) => {
    for (let e = element; e; e = e.parentElement) {
      const look = getComputedStyle(e);
      color = over(color, rgba(look.backgroundColor));
      color[3] *= Number(look.opacity);
    }
    return over(color, canvas);
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = [];
  let measured = 0;
  const measure = (text, color, ground, element, look) => {
    const [low, high] = [seen(color, element), seen(ground, element)].map(luminance).sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(look.fontSize);
    const needed = size >= 24 || (size >= 18.66 && Number(look.fontWeight) >= 700) ? 3 : 4.5;
    measured++;
    const where = `${text.trim().slice(0, 40)} in ${element.outerHTML.slice(0, 120)}`;
    if (ratio < needed) faint.push(`${ratio.toFixed(2)}: ${where}`);
  };
  const shown = (e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const boxed = (rects) => [...rects].some((r) => r.width > 1 && r.height > 1);
  const folds = [...view.querySelectorAll("details:not([open])")];
  folds.forEach((e) => (e.open = true));
  const walker = document.createTreeWalker(view, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const e = node.parentElement;
    const range = document.createRange();
    range.selectNodeContents(node);
    if (!node.data.trim() || !shown(e) || !boxed(range.getClientRects())) continue;
    const look = getComputedStyle(e);
    const drawn = e instanceof SVGElement;
    const outlined = drawn && look.paintOrder.startsWith("stroke") && parseFloat(look.strokeWidth) >= 2;
    measure(node.data, rgba(drawn ? look.fill : look.color), outlined ? rgba(look.stroke) : [0, 0, 0, 0], e, look);
  }
  const letters = /[^\\s"\u00a0\u200b\u2060]/;
  for (const e of [view, ...view.querySelectorAll("*")].filter(shown)) {
    for (const which of ["::before", "::after"]) {
      const look = getComputedStyle(e, which);
      const hidden = look.visibility === "hidden" || look.opacity === "0" || ["none", "normal"].includes(look.content);
      const words = hidden ? "" : look.content;
      if (!letters.test(words) || !boxed(e.getClientRects())) continue;
      const ground = rgba(look.backgroundColor);
      measure(words, over(rgba(look.color), ground), ground, e, look);
    }
    if (!e.matches("select, textarea, input:not([type=range], [type=checkbox])")) continue;
    const look = getComputedStyle(e);
    measure(e.value, rgba(look.color), [0, 0, 0, 0], e, look);
    if (e.placeholder) measure(e.placeholder, rgba(getComputedStyle(e, "::placeholder").color), [0, 0, 0, 0], e, look);
  }
  folds.forEach((e) => (e.open = false));
  return [measured, faint];
}"""


@dataclass
class Lab:
    """A page: JupyterLab with a notebook, or a file. ``errors`` are the console's, and exceptions that nobody caught.

    ``elsewhere``: what the page asked of another machine.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def command(self, name: str, **options: Any) -> None:
        self.page.evaluate("([name, options]) => window.jupyterapp.commands.execute(name, options)", [name, options])

    def run_all(self) -> None:
        """By the menu, as a reader does it."""
        menu = self.page.locator(".lm-MenuBar-itemLabel", has_text="Run").first
        menu.click()
        self.page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()

    def wait_idle(self) -> None:
        """Until no cell is waiting or running. AssertionError where one has raised: the cells behind it never run."""
        # A folded cell has a second prompt, without a number.
        prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt:not(.jp-Placeholder-prompt)')]"
        idle = f"{prompts}.every((e) => /\\[\\d+\\]/.test(e.textContent))"
        raised = f"document.querySelector({ERROR!r})?.innerText"
        found = self.page.wait_for_function(f"{raised} ?? ({idle} && 'idle')", timeout=2 * SECONDS * 1000).json_value()
        assert found == "idle", found[-3000:]

    def save(self) -> None:
        self.command("docmanager:save")
        self.page.wait_for_selector(".jp-mod-dirty", state="detached", timeout=30_000)

    def theme(self, name: str) -> None:
        """light or dark"""
        self.command("apputils:change-theme", theme=THEMES[name])
        wanted = str(name == "light").lower()
        self.page.wait_for_selector(f"body[data-jp-theme-light={wanted}]", state="attached", timeout=30_000)

    def screenshots(self, folder: Path, views: dict[str, Any], widths: tuple[int, ...] = (1280, 1024, 800)) -> None:
        """Pictures of views, by name, in both themes and all widths (pixels of the window): NAME-THEME-WIDTH.png.

        At 1024 pixels the list of files is open. AssertionError where a text is faint, or cut off at a view's right
        edge and no scrolling leads there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for width in widths:
            self.page.set_viewport_size({"width": width, "height": 1400})
            self.page.evaluate(f"window.jupyterapp.shell.{'expand' if width == 1024 else 'collapse'}Left()")
            tallest = max(view.evaluate("(e) => e.offsetHeight") for view in views.values())
            # Lab scrolls inside: what is below the window is not drawn.
            self.page.set_viewport_size({"width": width, "height": max(1400, tallest + 300)})
            for theme in THEMES:
                self.theme(theme)
                self.page.wait_for_timeout(300)  # Lab's own transitions
                for name, view in views.items():
                    view.scroll_into_view_if_needed()
                    over = view.evaluate(CUT_OFF)
                    until = time.monotonic() + 60
                    while over and time.monotonic() < until:  # a figure follows the window a frame or two later
                        # On a busy machine a page draws no frame unless it is asked to, and observes no new size.
                        view.screenshot()
                        self.page.wait_for_timeout(250)
                        over = view.evaluate(CUT_OFF)
                    view.screenshot(path=str(folder / f"{name}-{theme}-{width}.png"))
                    measured, faint = view.evaluate(FAINT)
                    assert measured > 1
                    assert faint == [], f"{name}, {theme}: {faint}"
                    assert over == [], f"{name}, {theme}, {width} pixels wide: {over}"

    def tab_through(self, view: Any) -> None:
        """Press tab from a view's first control to its last, and on each that takes no text a b, JupyterLab's key for
        a new cell. AssertionError where a control is not reached in its turn, and where there is a new cell.
        """
        names = view.evaluate(CONTROLS)
        cells = self.page.locator(".jp-Cell").count()
        reached = []
        for _ in range(2 * len(names)):  # a browser may stop at what scrolls, too
            reached.append(view.evaluate("(view) => view.rlControls.indexOf(document.activeElement)"))
            if view.evaluate(TAKES_NO_TEXT):
                self.page.keyboard.press("b")
            if reached[-1] == len(names) - 1:
                break
            self.page.keyboard.press("Tab")
        assert self.page.locator(".jp-Cell").count() == cells
        missed = [name for k, name in enumerate(names) if k not in reached]
        assert not missed, f"not reached by tab: {missed}"
        assert (found := [k for k in reached if k >= 0]) == sorted(found), [names[k] for k in found]


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of code cells, for this Python."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


@contextmanager
def open_jupyter(folder: Path, home: Path) -> Iterator[Callable[[str], Lab]]:
    """What opens a notebook of ``folder``, by name, in a page of its own. Skips without playwright or Chromium."""
    with open_chromium() as browser, _server(folder, home) as address:
        yield lambda name: _opened(browser.new_page(viewport={"width": 1280, "height": 1400}), address(name))


@contextmanager
def open_chromium() -> Iterator[Any]:
    """A browser without a window. Skips without playwright or Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: nothing can be tried in a browser")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


def visit(page: Any, address: str, home: str) -> Lab:
    """Open an address. What does not begin with ``home`` is elsewhere."""
    lab = Lab(page)
    page.on("console", lambda m: lab.errors.append(f"{m.text} [{m.location}]") if m.type == "error" else None)
    page.on("pageerror", lambda e: lab.errors.append(f"uncaught: {e}"))
    here = (home, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(here) else lab.elsewhere.append(r.url))
    page.goto(address, timeout=SECONDS * 1000)
    return lab


def _opened(page: Any, address: str) -> Lab:
    lab = visit(page, address, address.partition("/lab")[0])
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=SECONDS * 1000)
    # A notebook that is run before it has its kernel asks which one it should be.
    kernel = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel"
    page.wait_for_function(f"{kernel}?.status === 'idle'", timeout=SECONDS * 1000)
    page.evaluate("window.jupyterapp.shell.collapseLeft()")  # the files would take a third of a narrow window
    return lab


@contextmanager
def _server(folder: Path, home: Path) -> Iterator[Callable[[str], str]]:
    """What says the address of a notebook; each has a workspace, so that its page opens nothing else."""
    settings = home / "settings"
    for name, values in SETTINGS.items():
        path = settings / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    own |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}",
        "--LabApp.expose_app_in_browser=True", "--ServerApp.terminals_enabled=False",
    ]  # fmt: skip
    log = home / "server.log"
    with log.open("w") as out:
        environment = os.environ | {name: str(home / path) for name, path in own.items()}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        _until_it_answers(f"http://127.0.0.1:{port}/api?token={token}", process, log)
        yield lambda name: f"http://127.0.0.1:{port}/lab/workspaces/{Path(name).stem}/tree/{name}?token={token}"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _until_it_answers(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.2)
