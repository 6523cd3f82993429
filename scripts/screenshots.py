"""Draw the pictures of the documents with headless Chromium: a pipeline in kedro-viz; pages of evaluation, gateway and monitor.

    .venv/bin/python scripts/screenshots.py

Run `make run`, `.venv/bin/kedro promote`, and the traffic of docs/monitoring.md first. Needs Debian's package `chromium`.
"""

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT / "tests"))

from chromium import Browser, Page, chromium  # noqa: E402

QUESTION = "Where is my parcel? Order QF-482913, the tracking page has not moved since Monday."


def newest(name: str) -> Path:
    """Return the newest version of a report."""
    versions = sorted((ROOT / "data" / "08_reporting" / name).glob(f"*/{name}"))
    if not versions:
        sys.exit(f"There is no {name} yet: make run")
    return versions[-1]


def save(page: Page, name: str) -> None:
    """Save what a page shows."""
    image = IMAGES / name
    page.photograph(image)
    print(image.relative_to(ROOT), image.stat().st_size, "bytes")


def report(browser: Browser) -> None:
    """Photograph the evaluation report."""
    with browser.page(newest("evaluation.html").as_uri(), 1080, 1250) as page:
        save(page, "report.png")


def monitoring(browser: Browser) -> None:
    """Photograph the page of the monitor."""
    with browser.page(newest("monitoring.html").as_uri(), 1080, 1250) as page:
        save(page, "monitoring.png")


def pipeline(browser: Browser) -> None:
    """Build the static kedro-viz site, serve it on loopback, and photograph it."""
    subprocess.run([sys.executable, "-m", "kedro", "viz", "build", "--include-hooks"], cwd=ROOT, check=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(ROOT / "build"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with browser.page(f"http://127.0.0.1:{server.server_port}/?pid=evaluation", 1900, 1100) as page:
            page.wait("document.querySelectorAll('.pipeline-node').length > 10")
            time.sleep(3)  # it moves into its place
            # a tour and a side bar lie over it
            page.evaluate(
                "document.querySelectorAll('[class*=close], [aria-label=\"Hide menu\"]')"
                ".forEach(one => one.dispatchEvent(new MouseEvent('click', {bubbles: true})))"
            )
            time.sleep(3)
            save(page, "pipeline.png")
        server.shutdown()


def chat(browser: Browser) -> None:
    """Serve what is in production, ask it something on the page, and photograph that."""
    command = [sys.executable, "-m", "kedro", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = next(found[1] for line in server.stdout if (found := re.search(r"Chat:\s+(\S+)", line)))
            with browser.page(url, 900, 620) as page:
                page.wait("document.querySelector('footer')?.hidden === false")
                page.evaluate("document.querySelector('#text').focus()")
                page.write(QUESTION)
                page.press("Enter")
                page.wait("document.querySelectorAll('.answered:not([aria-busy])').length === 1", 120)
                page.click(".up")
                time.sleep(1)
                save(page, "chat.png")
        finally:
            server.terminate()


def main() -> None:
    """Take all pictures, or those that are named."""
    pictures = {"report": report, "pipeline": pipeline, "chat": chat, "monitoring": monitoring}
    IMAGES.mkdir(parents=True, exist_ok=True)
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        sys.exit("Chromium is not on this machine: apt-get install chromium")
    with chromium() as browser:
        for name in sys.argv[1:] or pictures:
            pictures[name](browser)


if __name__ == "__main__":
    main()
