"""Print what has changed between a tag and the one before it, in Markdown.

    python scripts/changelog.py v0.2.0

Needs Python and git alone.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path


def git(*arguments: str) -> str:
    """Return what git prints."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def changes(tag: str) -> str:
    """Return the subjects of all commits since the version before, the oldest first."""
    others = [other for other in git("tag", "--merged", tag, "--sort=-version:refname", "v*").split() if other != tag]
    before = others[0] if others else None
    subjects = git("log", "--no-merges", "--reverse", "--format=%s (%h)", f"{before}..{tag}" if before else tag).splitlines()
    since = f"Since {before}:" if before else "The first release:"
    return "\n".join([f"## {tag}, {git('log', '-1', '--format=%cs', tag)}", "", since, "", *(f"- {line}" for line in subjects)])


def main() -> int:
    """Refuse a tag that is not the project's version."""
    (tag,) = sys.argv[1:]
    version = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if not re.fullmatch(r"v\d+\.\d+\.\d+.*", tag) or tag != f"v{version}":
        print(f"The tag {tag} does not fit the version {version} in pyproject.toml: v{version} would.", file=sys.stderr)
        return 1
    print(changes(tag))
    return 0


if __name__ == "__main__":
    sys.exit(main())
