"""The site is built without a warning, loads nothing from elsewhere, and can be read and searched from the disk, on a phone, in the dark."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from chromium import Browser, chromium
from commands import ROOT, require
from documents import SITE


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Return the folder of the site, built as `make docs` builds it."""
    require(find_spec("zensical") is not None, "Zensical (the dependency group `docs`)")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    (folder / "src").symlink_to(ROOT / "src")
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser for all of them."""
    with chromium() as started:
        yield started


def test_every_page_is_there_and_nothing_comes_from_another_host(site):
    for page in SITE:
        html = (site / page.relative_to(ROOT / "docs")).with_suffix(".html").read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"?([^\" >]+)|<link[^>]* href=\"?([^\" >]+)", html)
        assert loaded
        assert not [one for pair in loaded for one in pair if "//" in one], page
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_python_is_described_from_the_code(site):
    html = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in ("luthier.packages.check_package", "luthier.registry.Registry.promote", "luthier.stats.evidence_on_pairs"):
        assert f'id="{name}"' in html or f"id={name}" in html, name


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_pages_are_read_from_the_disk(site, browser, width, dark):
    for name in ("index", "architecture", "reference/parameters"):
        with browser.page((site / f"{name}.html").as_uri(), width, 900, dark) as page:
            red, *_ = map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))
            assert (red < 128) == dark
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the window"
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
            asked = [event["request"]["url"] for event in page.happened("Network.requestWillBeSent")]
            assert not [url for url in asked if not url.startswith(("file:", "data:"))]
            assert not page.happened("Runtime.exceptionThrown")


def test_the_site_is_searched_from_the_disk(site, browser):
    with browser.page((site / "index.html").as_uri()) as page:
        # the search has a document of its own, in the shadow of what has the focus
        page.click("button.md-search__button")
        page.wait("document.activeElement?.shadowRoot?.activeElement?.tagName === 'INPUT'")
        page.write("micro_batch_tokens")
        page.wait("/[1-9] result/.test(document.activeElement?.shadowRoot?.textContent)")
        assert "Parameters" in page.evaluate("document.activeElement.shadowRoot.textContent")
