"""Write the documents and all pipelines as pages into build/site; a link that leads nowhere is an error.

.venv/bin/python scripts/site_pages.py
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  body {{ font: 1rem/1.55 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }}
  pre {{ overflow: auto; padding: .8rem; background: #8881; border-radius: 6px }}
  table {{ border-collapse: collapse; display: block; overflow: auto }}
  td, th {{ border: 1px solid #8885; padding: .3rem .6rem; text-align: left }}
  img {{ max-width: 100% }}
</style>
<nav>{nav}</nav>
{body}
"""


def documents() -> list[Path]:
    """Return all documents of the project, the first page first."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted((Path(line) for line in listed.splitlines()), key=lambda path: (path != Path("README.md"), path))


def reader() -> MarkdownIt:
    """Return what reads Markdown as GitHub does."""
    return MarkdownIt("gfm-like", {"linkify": False, "html": True})


def parsed(document: Path) -> list[Token]:
    """Return a document as its tokens."""
    return reader().parse((ROOT / document).read_text(encoding="utf-8"))


def anchors(text: str) -> set[str]:
    """Return what `#...` may name in a document, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(document: Path, tokens: list[Token]) -> list[str]:
    """Return the links of a document that lead nowhere."""
    found = []
    for target in links(tokens):
        parts = urlsplit(target)
        if parts.scheme or not (parts.path or parts.fragment):
            continue
        there = (ROOT / document.parent / unquote(parts.path)).resolve() if parts.path else ROOT / document
        if not there.exists():
            found.append(f"{document}: {target} is not there")
        elif parts.fragment and there.suffix == ".md" and parts.fragment not in anchors(there.read_text(encoding="utf-8")):
            found.append(f"{document}: {target} names no heading")
    return found


def links(tokens: list[Token]) -> list[str]:
    """Return where the links and images of a document lead."""
    inline = [child for token in tokens for child in token.children or []]
    names = {"link_open": "href", "image": "src"}
    return [str(token.attrs[names[token.type]]) for token in inline if token.type in names]


def problems() -> list[str]:
    """Return the links of all documents that lead nowhere."""
    return [line for document in documents() for line in broken(document, parsed(document))]


def write(document: Path) -> None:
    """Write a document as a page; links to documents lead to their pages."""
    tokens = parsed(document)
    inline = [child for token in tokens for child in token.children or []]
    for link in (child for child in inline if child.type == "link_open"):
        href = str(link.attrs["href"])
        if not urlsplit(href).scheme:
            link.attrs["href"] = re.sub(r"\.md(?=#|$)", ".html", href)
    up = "../" * len(document.parent.parts)
    nav = f'<a href="{up}README.html">Luthier</a> · <a href="{up}pipelines/index.html">pipelines</a>'
    page = SITE / document.with_suffix(".html")
    page.parent.mkdir(parents=True, exist_ok=True)
    body = reader().renderer.render(tokens, reader().options, {})
    page.write_text(PAGE.format(title=document.stem, nav=nav, body=body), encoding="utf-8")


def main() -> int:
    """Check all links, then write all pages."""
    if wrong := problems():
        print("\n".join(wrong), file=sys.stderr)
        return 1
    shutil.rmtree(SITE, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "kedro", "viz", "build", "--include-hooks"], cwd=ROOT, check=True)
    built = [path for path in (ROOT / "build").iterdir() if path != SITE]
    (SITE / "pipelines").mkdir(parents=True)
    for path in built:
        shutil.move(path, SITE / "pipelines" / path.name)
    for document in documents():
        write(document)
    shutil.copytree(ROOT / "docs" / "images", SITE / "docs" / "images")
    (SITE / "index.html").write_text('<!doctype html><meta http-equiv="refresh" content="0; url=README.html">\n')
    print(f"{len(documents())} documents and the pipelines are in {SITE.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
