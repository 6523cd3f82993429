"""Draw the pictures of the README: the pipeline in kedro-viz and the evaluation report, with headless Chromium.

    .venv/bin/python scripts/screenshots.py

Run `make run` first. Needs Chromium (Debian's package `chromium`).
"""

import functools
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    """Return the browser's path, or leave with a word."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        sys.exit("Chromium is not on this machine: apt-get install chromium")
    return found


def photograph(url: str, image: Path, width: int, height: int, wait: int) -> None:
    """Open a page and save what it shows after `wait` milliseconds of its own time."""
    with tempfile.TemporaryDirectory() as profile:
        size = [f"--window-size={width},{height}", f"--virtual-time-budget={wait}", f"--user-data-dir={profile}"]
        subprocess.run([chromium(), *FLAGS, *size, f"--screenshot={image}", url], check=True, timeout=120, capture_output=True)
    print(image.relative_to(ROOT), image.stat().st_size, "bytes")


def newest(name: str) -> Path:
    """Return the newest version of a report."""
    versions = sorted((ROOT / "data" / "08_reporting" / name).glob(f"*/{name}"))
    if not versions:
        sys.exit(f"There is no {name} yet: make run")
    return versions[-1]


def main() -> None:
    """Build the static kedro-viz site, serve it on loopback, and photograph it and the report."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    photograph(newest("evaluation.html").as_uri(), IMAGES / "report.png", 1080, 1250, 2_000)
    subprocess.run([sys.executable, "-m", "kedro", "viz", "build", "--include-hooks"], cwd=ROOT, check=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(ROOT / "build"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        photograph(f"http://127.0.0.1:{server.server_port}/", IMAGES / "pipeline.png", 1900, 1300, 15_000)
        server.shutdown()


if __name__ == "__main__":
    main()
