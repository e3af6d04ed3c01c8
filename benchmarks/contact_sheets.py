"""Pictures of executed lessons as pages: `python benchmarks/contact_sheets.py runs/notebooks/*/*.ipynb`.

A sheet is one lesson at one width, light above dark, cut into columns. What reaches over the right edge of a page, and
is in nothing that scrolls, is printed; the rest is for eyes. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat

from relaylab.pages import LessonPage, browser

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from real_jupyterlab import CUT_OFF, THEMES

SCALE = 0.5  # pixels of a picture per pixel of its page
COLUMN = 3000  # pixels of a page in a column


def picture(window: Any, notebook: Path, theme: str, width: int, folder: Path) -> tuple[Path, int, list[str]]:
    """A whole page as a picture, its height in pixels of the page, and what is cut off."""
    book: Any = nbformat.read(notebook, 4)
    page, _ = LessonPage(theme=theme).from_notebook_node(book, {"metadata": {"name": notebook.stem}})
    file = folder / f"{notebook.stem}-{theme}.html"
    file.write_text(page, encoding="utf-8")
    tab = window.new_page(viewport={"width": width, "height": 1000}, device_scale_factor=SCALE, color_scheme=theme)
    tab.goto(file.as_uri())
    tab.wait_for_function("[...document.querySelectorAll('.rl-fig .rl-live')].every((e) => e.children.length)")
    tab.wait_for_timeout(500)  # figures follow the width of their page a frame later
    cut = tab.locator("body").evaluate(CUT_OFF)
    height = tab.evaluate("document.documentElement.scrollHeight")
    tab.set_viewport_size({"width": width, "height": height})  # a browser leaves out rows that are far from its window
    tab.wait_for_timeout(500)
    path = folder / f"{notebook.stem}-{width}-{theme}.png"
    tab.screenshot(path=str(path), full_page=True)
    tab.close()
    return path, height, cut


def sheet(window: Any, pictures: list[tuple[Path, int]], width: int, path: Path) -> None:
    """Pictures below each other, each cut into columns."""
    tall = min(COLUMN, max(height for _, height in pictures))
    column = f"flex:none;width:{SCALE * width}px;height:{SCALE * tall}px"
    rows = [
        "".join(
            f"<div style=\"{column};background:url('{file.as_uri()}') 0 {-SCALE * top}px no-repeat\"></div>"
            for top in range(0, height, COLUMN)
        )
        for file, height in pictures
    ]
    body = "".join(f'<div style="display:flex;gap:8px;margin-bottom:8px">{row}</div>' for row in rows)
    html = path.with_suffix(".html")
    html.write_text(f'<body style="margin:0;width:max-content;background:#808080">{body}', encoding="utf-8")
    tab = window.new_page(viewport={"width": 800, "height": 600})
    tab.goto(html.resolve().as_uri())
    tab.locator("body").screenshot(path=str(path))
    tab.close()
    html.unlink()


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="+", help="Executed notebooks.")
    parser.add_argument("--out", type=Path, default=Path("runs/sheets"))
    parser.add_argument("--widths", type=int, nargs="+", default=[1366, 1024])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        window = play.chromium.launch(executable_path=browser(), args=["--no-sandbox", "--disable-gpu"])
        for notebook in options.notebooks:
            for width in options.widths:
                pictures = []
                for theme in THEMES:
                    path, height, cut = picture(window, notebook, theme, width, Path(folder))
                    pictures.append((path, height))
                    for element in cut:
                        print(f"{notebook.stem}, {theme}, {width}: cut off: {element}")
                sheet(window, pictures, width, options.out / f"{notebook.stem}-{width}.png")
                print(options.out / f"{notebook.stem}-{width}.png")
        window.close()


if __name__ == "__main__":
    main()
