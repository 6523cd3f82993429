"""The pages of docs/ are followed as a reader would: the quick start in a fresh project, every other page in one where that was done."""

import shutil
from pathlib import Path

import pytest
from commands import ROOT
from documents import SITE, blocks, follow, is_run, name_of, readers_project

QUICK_START = ROOT / "docs" / "quick-start.md"
OTHERS = [page for page in SITE if page != QUICK_START and any(map(is_run, blocks(page)))]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> tuple[Path, str]:
    """Return a project in which a reader followed the quick start, and what was printed."""
    folder = readers_project(tmp_path_factory.mktemp("reader") / "luthier")
    return folder, follow(QUICK_START, folder)


def test_the_quick_start_leads_from_nothing_to_production_and_back_to_the_data(begun):
    folder, printed = begun
    said = " ".join(printed.split())
    assert "Registered as version 1 of luthier" in said
    assert "Version 1 is the champion" in said
    assert "source data/01_raw/support_messages.jsonl" in said
    assert list((folder / "data/08_reporting/evaluation.html").glob("*/evaluation.html"))


@pytest.mark.parametrize("page", OTHERS, ids=name_of)
def test_what_a_page_says_can_be_done_after_the_quick_start(page, begun, tmp_path):
    folder = tmp_path / "luthier"
    shutil.copytree(begun[0], folder, symlinks=True)
    follow(page, folder)


def test_some_pages_are_followed():
    assert len(OTHERS) >= 4
