"""What the documents hold: their code blocks and code in sentences, and the project of a reader who follows them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from commands import ROOT, environment, make_project
from markdown_it import MarkdownIt
from omegaconf import OmegaConf

SITE = sorted((ROOT / "docs").rglob("*.md"))
ROOMS = sorted((ROOT / "src").rglob("README.md"))
BESIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
DOCUMENTS = [*BESIDE, *SITE, *ROOMS, *sorted((ROOT / "data").glob("README.md")), ROOT / "data/01_raw/README.md"]
MARKER = re.compile(r"<!-- (?:not run|run by (?P<tests>tests/\S+::\w+)): .*\S -->\s*", re.DOTALL)
MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    comment: str
    """The HTML comment that stands before it, if there is one."""

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """Return the name of a document."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    tokens, found = MARKDOWN.parse(page.read_text(encoding="utf-8")), []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "fence":
            language, _, rest = token.info.strip().partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            comment = before.content if before is not None and before.type == "html_block" else ""
            found.append(Block(page, token.map[0] + 1, language, title[1] if title else "", token.content, comment))
    return found


def code_in_sentences(page: Path) -> Iterator[str]:
    """Yield what stands between single backticks."""
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        yield from (part.content for part in token.children or () if part.type == "code_inline")


def is_run(block: Block) -> bool:
    """Whether a reader's commands are run as they stand."""
    return block.language == "bash" and not MARKER.fullmatch(block.comment)


def readers_project(folder: Path) -> Path:
    """Lay out what a reader has after installing: a project whose own configuration makes the model tiny and the gate easy."""
    make_project(folder)
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    tiny = OmegaConf.load(ROOT / "conf" / "test" / "parameters.yml")
    easy = OmegaConf.create(
        {"evaluation": {"gate": {"rules": [{"metric": "exact_match", "not_worse_than": "base", "margin": 0.9}]}}}
    )
    OmegaConf.save(OmegaConf.merge(tiny, easy), folder / "conf" / "local" / "parameters.yml")
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, arguments in {"python": "", "kedro": " -m kedro"}.items():
        script = binaries / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    (folder / ".venv" / ".runtime").touch()  # what the Makefile makes when all is installed
    return folder


def follow(page: Path, folder: Path) -> str:
    """Do in a reader's project what a page says, block after block; return what was printed.

    A block with a title is the content of that file; parameters are added to those that are there.

    Raises:
        AssertionError: naming the block whose commands failed, with what they printed.
    """
    printed = ""
    for block in blocks(page):
        if block.title:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_file() and file.suffix == ".yml":
                OmegaConf.save(OmegaConf.merge(OmegaConf.load(file), OmegaConf.create(block.text)), file)
            else:
                file.write_text(block.text, encoding="utf-8")
        elif is_run(block):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                cwd=folder,
                env=environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            assert done.returncode == 0, f"{block.place} exits with {done.returncode}\n{block.text}\n{done.stdout}{done.stderr}"
            printed += done.stdout + done.stderr
    return printed
