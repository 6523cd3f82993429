"""What the commands show in a terminal."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.registry import Line, Version

FULL_WIDTH = 116
"""Columns of a terminal that a whole table of versions needs."""


def show(table: Any) -> None:
    """Print something of rich's, as wide as it needs where nobody reads it in a terminal."""
    _console().print(table)


def _console() -> Any:
    from rich.console import Console

    console = Console()
    # a file or a pipe has no width: nothing is folded there
    return console if console.is_terminal else Console(width=240)


def _table(rows: list[dict[str, Any]], numbers: tuple[str, ...], least: tuple[str, ...]) -> Any:
    """Return a table of rows by column: `numbers` stand to the right, and what is `least` needs a window of some width."""
    from rich.table import Table

    narrow = _console().width < FULL_WIDTH
    told = f"in a window of {FULL_WIDTH} columns: {', '.join(least)}" if narrow else None
    table = Table(box=None, pad_edge=False, caption=told, caption_justify="left")
    shown = [name for name in rows[0] if not (narrow and name in least)]
    for name in shown:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


def versions_table(versions: "list[Version]") -> Any:
    """Return the registered versions as a table of rich's."""
    from rich.text import Text

    colours = {"pass": "green", "fail": "red", "undecided": "yellow"}
    rows = [
        {
            "version": str(version.number),
            "aliases": Text("\n".join(version.aliases), style="bold" if "champion" in version.aliases else ""),
            "gate": Text(version.gate, style=colours.get(version.gate, "")),
            "figures": "\n".join(f"{name} {value:.4g}" for name, value in list(version.figures.items())[:4]),
            "registered (UTC)": version.created.replace("T", " ")[:16],
            "commit": version.commit[:8],
            "run": version.run[:8],
            "data": "\n".join(f"{name} {sha256[:8]}" for name, sha256 in version.data.items()),
        }
        for version in versions
    ]
    return _table(rows, numbers=("version",), least=("run", "data"))


def log_table(lines: "list[Line]") -> Any:
    """Return the deployment log as a table of rich's."""
    from rich.text import Text

    rows = [
        {
            "line": str(line.number),
            "when (UTC)": line.at.replace("T", " ")[:19],
            "who": Text(line.who),
            "what": f"{line.action}, forced" if line.forced else line.action,
            "from": str(line.from_version or ""),
            "to": str(line.version),
            "gate": line.gate,
            "package": line.manifest[:8],
            "reason": Text(line.reason),
        }
        for line in lines
    ]
    return _table(rows, numbers=("line", "from", "to"), least=("gate", "package"))
