"""Measure the page: its weight, its requests, and the time to the first relay in a new Chromium without a cache.

python web/measure_page.py runs/page --rounds 5
"""

from __future__ import annotations

import argparse
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WAIT = 300_000  # milliseconds; a busy machine is slow
FIRST = ".rl-answer .rl-run:not([aria-busy=true])"  # the panel of the first answer, once it is whole
PROCESSOR = "processor time of the page's process"  # says more than the clock on a busy machine
MARKS = ("relay:ready", "relay:answer", PROCESSOR)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """A plain static server on the loopback; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def load_once(browser: Any, address: str) -> tuple[dict[str, int], dict[str, float]]:
    """Open the page in a context of its own.

    Returns:
        The bytes of each answered request by address; the marks (seconds after the navigation) and the processor time.
    """
    with browser.new_context() as context:
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Performance.enable")
        finished: list[Any] = []
        page.on("requestfinished", lambda request: finished.append(request))
        page.goto(address)
        page.locator(FIRST).wait_for(timeout=WAIT)
        times = page.evaluate("performance.getEntriesByType('mark').map((mark) => [mark.name, mark.startTime / 1000])")
        sizes = {request.url: request.sizes()["responseBodySize"] for request in finished}
        metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
        return sizes, dict(times) | {PROCESSOR: metrics["ProcessTime"]}


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the page")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with serve(args.folder) as address, sync_playwright() as play:
        rounds = []
        for _ in range(args.rounds):
            browser = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
            rounds.append(load_once(browser, address))
            browser.close()
    sizes, elsewhere = rounds[0][0], [url for sizes, _ in rounds for url in sizes if not url.startswith(address)]
    print(f"requests: {len(sizes)}, to other hosts: {len(elsewhere)}, weight: {sum(sizes.values()) / 1e6:.2f} MB")
    for url, size in sorted(sizes.items(), key=lambda item: -item[1])[:6]:
        print(f"  {size / 1e6:6.2f} MB  {url.removeprefix(address) or 'index.html'}")
    for mark in MARKS:
        times = [times[mark] for _, times in rounds]
        print(f"{mark}: median {median(times):.2f} s ({min(times):.2f}, {max(times):.2f})")
    load = os.getloadavg() if hasattr(os, "getloadavg") else "unknown"  # Windows has none
    print(f"load of the machine (1, 5, 15 minutes): {load}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
