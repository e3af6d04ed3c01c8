"""Build the site into runs/site and check it: no broken link, and nothing that is fetched from elsewhere.

    python website/build.py

MkDocs checks the links that stand in Markdown. This checks the pages themselves, of lessons and docstrings, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
SITE = ROOT / "runs" / "site"
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}


class Page(HTMLParser):
    """The ids of a page, its links, and what its reader's browser fetches."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := values.get(name))}
        if tag == "a" and (link := values.get("href")) is not None:
            self.links.append(link)
        if (link := values.get(FETCHED.get(tag, ""))) and values.get("rel") != "canonical":
            self.fetched.append(link)


def faults(site: Path) -> list[str]:
    """What is wrong with the links of a built site, a line each.

    Args:
        site: the folder; its pages are the files ``*.html``.
    """
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site).as_posix()
        for link in page.fetched:
            if urlsplit(link).scheme not in ("", "data") or link.startswith("//"):
                found.append(f"{where} fetches {link}")
        for link in page.links + page.fetched:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            base = site if parts.path.startswith("/") or path.name == "404.html" else path.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{where} links to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{where} links to {link}, which has no such place")
    return found


def build(site: Path) -> int:
    """Build; the exit code of MkDocs.

    Args:
        site: the folder to write. What was in it is gone.
    """
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean", "--site-dir", str(site)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # docs/design.md says why it is this generator
    return subprocess.run(command, cwd=ROOT, env=quiet).returncode


def main() -> int:
    """Build and check; the exit code."""
    begin = time.monotonic()
    if failed := build(SITE):
        return failed
    wrong = faults(SITE)
    for line in wrong:
        print(line)
    pages, size = len(list(SITE.rglob("*.html"))), sum(p.stat().st_size for p in SITE.rglob("*") if p.is_file())
    took = time.monotonic() - begin
    print(f"{SITE.relative_to(ROOT)}: {pages} pages, {size / 1e6:.1f} MB, {len(wrong)} broken links, {took:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
