"""Show the gate's decision: a table for people, a comment for a pull request."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

COLOURS = {"pass": "green", "fail": "bold red", "undecided": "yellow", "skipped": "dim"}
MARKS = {"pass": "✅ pass", "fail": "❌ fail", "undecided": "❔ undecided", "skipped": "➖ skipped"}
NEXT = {
    "pass": "Every rule is shown to hold.",
    "fail": "A rule is shown to be missed: this model does not go out.",
    "undecided": "No rule is shown to be missed, but not every one is shown to hold: more test examples would tell.",
}


def measured(rule: Mapping[str, Any]) -> str:
    """Return a rule's figure with its bounds, such as `+0.043 [+0.012, +0.081]`."""
    if rule["value"] is None:
        return "-"
    if rule["low"] is None and rule["high"] is None:
        return _figure(rule, rule["value"])
    low, high = (("?" if rule[bound] is None else _figure(rule, rule[bound])) for bound in ("low", "high"))
    return f"{_figure(rule, rule['value'])} [{low}, {high}]"


def _figure(rule: Mapping[str, Any], value: float) -> str:
    """Write a difference with its sign: those are compared with zero or with a margin below it."""
    return f"{value:+.3f}" if rule["limit"] is not None and rule["limit"] <= 0 else f"{value:.3f}"


def _limit(rule: Mapping[str, Any]) -> str:
    return "-" if rule["limit"] is None else f"{rule['limit']:g}"


def _about(decision: Mapping[str, Any]) -> str:
    champion = f"champion: {decision['champion']}" if decision["champion"] else "no champion yet"
    return f"{decision['candidate']} on {decision['examples']:,} examples, {champion}, level {decision['alpha']:.0%}"


def render_table(decision: Mapping[str, Any]) -> Table:
    """Return the decision as a table for the terminal."""
    table = Table(title=f"Gate: {decision['decision']}   ({_about(decision)})", title_justify="left", caption_justify="left")
    table.caption = NEXT[decision["decision"]]
    table.add_column("rule", ratio=3, overflow="fold")
    table.add_column("decision", no_wrap=True)
    table.add_column("measured [bounds]", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("why", ratio=4, overflow="fold")
    for rule in decision["rules"]:
        verdict = Text(rule["decision"], style=COLOURS[rule["decision"]])
        # Text, because rich would take the brackets of bounds and of names from the data for markup
        table.add_row(Text(rule["rule"]), verdict, Text(measured(rule)), _limit(rule), Text(rule["why"]))
    return table


def render_markdown(decision: Mapping[str, Any]) -> str:
    """Return the decision as Markdown for a comment on a pull request."""
    rows = [[rule["rule"], MARKS[rule["decision"]], measured(rule), _limit(rule), rule["why"]] for rule in decision["rules"]]
    header = [["rule", "decision", "measured [bounds]", "limit", "why"], ["---", "---", "--:", "--:", "---"]]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [*header, *rows]]
    return "\n".join(
        [
            f"### Gate: {MARKS[decision['decision']]}",
            "",
            f"{_about(decision)}. {NEXT[decision['decision']]}",
            "",
            *lines,
            "",
        ]
    )
