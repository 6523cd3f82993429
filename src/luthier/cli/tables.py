"""What the commands show in a terminal."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.data_versions.diff import Difference
    from luthier.data_versions.prepared import Prepared
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


def shown_bytes(size: int) -> str:
    """Return a size for people.

    >>> shown_bytes(1_234_567)
    '1.2 MB'
    """
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def prepared_table(versions: "list[Prepared]") -> Any:
    """Return the versions of the prepared data as a table of rich's."""
    rows = [
        {
            "version": one.version,
            "rows": f"{sum(one.rows.values()):,}",
            "by split": ", ".join(f"{count:,} {split}" for split, count in one.rows.items() if count),
            "models": ", ".join(map(str, one.models)),
            "records": one.sha256[:8],
            "size": shown_bytes(one.bytes),
            "sources": "\n".join(f"{source['file']} {source['sha256'][:8]}" for source in one.sources),
            "missing": ", ".join(one.missing),
        }
        for one in versions
    ]
    least = ("sources", "size")
    return _table(
        [{name: row[name] for name in row if name != "missing" or any(r["missing"] for r in rows)} for row in rows],
        numbers=("rows", "size"),
        least=least,
    )


def prune_table(rows: list[dict[str, Any]]) -> Any:
    """Return what would be removed as a table of rich's."""
    shown = [
        {
            "what": row["what"],
            "remove": f"{row['remove']:,}",
            "keep": "" if row["keep"] is None else f"{row['keep']:,}",
            "size": shown_bytes(row["bytes"]),
        }
        for row in rows
    ]
    return _table(shown, numbers=("remove", "keep", "size"), least=())


def mix_table(title: str, mix: "dict[str, tuple[int, int]]") -> Any:
    """Return counts before and after, with their shares, as a table of rich's; what changed most stands first."""
    totals = [max(1, sum(pair[side] for pair in mix.values())) for side in (0, 1)]
    shares = {name: (pair[0] / totals[0], pair[1] / totals[1]) for name, pair in mix.items()}
    ordered = sorted(mix, key=lambda name: (-abs(shares[name][1] - shares[name][0]), name))
    rows = [
        {
            title: name or "(none)",
            "before": f"{mix[name][0]:,}",
            "after": f"{mix[name][1]:,}",
            "share before": f"{shares[name][0]:.1%}",
            "share after": f"{shares[name][1]:.1%}",
            "change": f"{100 * (shares[name][1] - shares[name][0]):+.1f} points",
        }
        for name in ordered
    ]
    return _table(rows, numbers=("before", "after", "share before", "share after", "change"), least=())


def difference_lines(found: "Difference") -> list[str]:
    """Say in a few lines what became of the rows, with the first ids of each kind."""

    def some(names: Any) -> str:
        names = list(names)
        return f"  {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""

    changed = [f"{name} ({', '.join(columns)})" for name, columns in found.changed.items()]
    moved = [f"{name} ({before} -> {after})" for name, (before, after) in found.moved.items()]
    return [
        f"rows     {found.before:,} -> {found.after:,}",
        f"added    {len(found.added):,}{some(found.added)}",
        f"removed  {len(found.removed):,}{some(found.removed)}",
        f"changed  {len(found.changed):,}{some(changed)}",
        f"moved    {len(found.moved):,}{some(moved)}",
    ]
