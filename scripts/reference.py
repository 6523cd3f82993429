"""Write the reference pages from the code that they describe: parameters, commands, nodes and data sets.

.venv/bin/python scripts/reference.py            # writes docs/reference/*.md; `make docs` does it first
.venv/bin/python scripts/reference.py --check    # exit 1 if a page is not current
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic.json_schema import GenerateJsonSchema

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
sys.path.insert(0, str(ROOT / "src"))

from luthier.cli import cli  # noqa: E402
from luthier.pipeline_registry import PARAMETERS, register_pipelines  # noqa: E402

NOTE = "<!-- written by scripts/reference.py: `make docs` -->"
ENVIRONMENTS = ("gpu", "cluster", "test")
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
NOTHING: Any = object()
"""Stands for what is not written: `null` is a value."""

Schema = dict[str, Any]


def linked(text: str) -> str:
    """Return a sentence whose pages of this site are links."""
    return re.sub(r"docs/([a-z-]+)\.md(?!\))", r"[\1](../\1.md)", " ".join(text.split()))


def code(value: Any) -> str:
    """Return a value as it would be written in YAML, in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    text = text.strip().removesuffix("...").strip()
    return f"`{json.dumps(value, ensure_ascii=False) if chr(10) in text else text}`"


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a table, and an empty one."""
    titles = list(titles)
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


# parameters


def written(environment: str) -> dict[str, tuple[str, Any]]:
    """Return, of each block that an environment of `conf/` writes, its file and what it says."""
    files = sorted((ROOT / "conf" / environment).glob("parameters*.yml"))
    return {
        block: (str(file.relative_to(ROOT)), value)
        for file in files
        for block, value in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).items()
    }


def value_at(block: Any, path: Iterable[str]) -> Any:
    """Return what stands at a path of a block, or NOTHING."""
    for key in path:
        if not isinstance(block, dict) or key not in block:
            return NOTHING
        block = block[key]
    return block


def blocks_in(schema: Schema) -> tuple[str, str] | None:
    """Return the model that a value holds, and what stands behind its name: `.NAME` of a map, `[]` of a list."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2], ""
    if "anyOf" in schema:
        held = [found for one in schema["anyOf"] if (found := blocks_in(one))]
        return held[0] if len(held) == 1 else None
    for key, between in (("items", "[]"), ("additionalProperties", ".NAME")):
        if isinstance(schema.get(key), dict) and (found := blocks_in(schema[key])):
            return found[0], between
    return None


def kind_of(schema: Schema) -> str:
    """Return the type of a value, with its limits, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(kind_of, schema["anyOf"])))
    if "$ref" in schema:
        return "block"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if choice := re.fullmatch(r"\^\(([a-z_|]+)\)\$", schema.get("pattern", "")):
        return ", ".join(f"`{value}`" for value in choice[1].split("|"))
    if schema.get("type") == "array":
        return f"list of {kind_of(schema['items'])}" if isinstance(schema.get("items"), dict) else "list"
    if schema.get("type") == "object":
        held = schema.get("additionalProperties")
        return f"map of name to {kind_of(held)}" if isinstance(held, dict) else "map"
    limits = " and ".join(f"{sign} {schema[name]:g}" for name, sign in LIMITS.items() if name in schema)
    return " ".join(filter(None, (KINDS.get(schema.get("type", ""), "any value"), limits)))


class WithFactories(GenerateJsonSchema):
    """A JSON Schema that shows the defaults of default factories too."""

    def get_default_value(self, schema: Any) -> Any:
        """Return the default of a field."""
        return schema["default_factory"]() if "default_factory" in schema else super().get_default_value(schema)


def parameters_of_block(name: str, values: dict[str, Any], whole: Schema) -> Iterator[str]:
    """Yield the sections of a block: its own parameters, then those of each block in it."""

    def section(schema: Schema, shown: str, path: tuple[str, ...] | None) -> Iterator[str]:
        if shown != name:
            yield f"### {shown}\n"
            yield f"{linked(schema['description'])}\n"
        rows, inner = [], []
        for key, field in schema["properties"].items():
            here = None if path is None else (*path, key)
            kind, what = kind_of(field), field.get("description", "")
            if held := blocks_in(field):
                block, there = whole["$defs"][held[0]], f"{shown}.{key}{held[1]}"
                inner.append((block, there, here if held[1] == "" else None))
                kind = kind.replace("block", f"[block](#{re.sub(r'[^a-z0-9_-]', '', there.lower())})")
                what = what or block["description"]
            rows.append((f"`{key}`", shown_value(field, values, here), f"{linked(what)} *{kind}*"))
        yield from table(("parameter", "value", "what it is"), rows)
        for arguments in inner:
            yield from section(*arguments)

    yield from section(whole, name, ())


def shown_value(field: Schema, values: dict[str, Any], path: tuple[str, ...] | None) -> str:
    """Return what a parameter is without an environment, and what each environment makes it; nothing for a block."""
    set_here = {environment: value_at(block, path) for environment, block in values.items()} if path else {}
    base = set_here.pop("base", NOTHING)
    ours = [f"{environment}: {code(one)}" for environment, one in set_here.items() if one is not NOTHING and not is_block(one)]
    base = field.get("default", NOTHING) if base is NOTHING else base
    if base is NOTHING:
        return "must be given"
    return "<br>".join([] if blocks_in(field) and is_block(base) else [code(base), *ours])


def is_block(value: Any) -> bool:
    """Whether a value has rows of its own."""
    return isinstance(value, dict) and bool(value)


def parameters_page() -> str:
    """Return the page of all parameters."""
    everywhere = {environment: written(environment) for environment in ("base", *ENVIRONMENTS)}
    lines = [
        "# Parameters\n",
        NOTE,
        "\nWhat stands in `conf/base` is the value without an environment; a line with a name is what `--env` of that name sets.",
        "Write yours into `conf/local/parameters.yml`, which git ignores, or give them once:",
        "`.venv/bin/kedro run --params training.epochs=2`. A key that is not listed here is an error. `seed`, a whole number in",
        "`conf/base/parameters.yml`, decides all that is drawn.\n",
    ]
    for name, model in PARAMETERS.items():
        blocks = {environment: found[name] for environment, found in everywhere.items() if name in found}
        file, _ = blocks["base"]
        whole = model.model_json_schema(schema_generator=WithFactories)
        lines += [f"## {name}\n", f"{linked(whole['description'])} In `{file}`.\n"]
        lines += parameters_of_block(name, {environment: block for environment, (_, block) in blocks.items()}, whole)
    return "\n".join(lines).rstrip() + "\n"


# commands


def option_rows(command: click.Command) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each option: how it is written, what it does, what it is by default."""
    for option in command.params:
        if isinstance(option, click.Option):
            takes = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
            choices = f"{', '.join(f'`{one}`' for one in option.type.choices)}. " if isinstance(option.type, click.Choice) else ""
            default = code(option.default) if option.show_default and option.default is not None else ""
            yield f"`{', '.join(option.opts)}{takes}`", choices + linked(option.help or ""), default


def sections_of(name: str, command: click.Command, heading: str) -> Iterator[str]:
    """Yield the section of a command; of a group, also those of its commands, one level below."""
    parts = [part.make_metavar(click.Context(command)) for part in command.params if isinstance(part, click.Argument)]
    parts += ["COMMAND"] if isinstance(command, click.Group) else []
    yield from (f"{heading} {name}\n", f"`{' '.join(['kedro', name, *parts])}`\n", f"{linked(command.help or '')}\n")
    if rows := list(option_rows(command)):
        yield from table(("option", "what it does", "default"), rows)
    if isinstance(command, click.Group):
        for inner, below in sorted(command.commands.items()):
            yield from sections_of(f"{name} {inner}", below, f"{heading}#")


def commands_page() -> str:
    """Return the page of all commands."""
    lines = [
        "# Commands\n",
        NOTE,
        "\nEach is `.venv/bin/kedro NAME`, in the project's folder or below it; `--help` prints the same. `--env` names a folder",
        "of `conf/`. Kedro's own commands (`viz`, `jupyter`, `catalog`, ...) are listed by `.venv/bin/kedro --help`.\n",
    ]
    for name, command in sorted(cli.commands.items()):
        lines += sections_of(name, command, "##")
    return "\n".join(lines).rstrip() + "\n"


# nodes and data sets


def catalog() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return each entry of the catalog with its file."""
    found = {}
    for file in sorted((ROOT / "conf" / "base").glob("catalog*.yml")):
        for name, entry in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            if not name.startswith("_"):
                found[name] = (file.name, entry)
    return found


def nodes_page() -> str:
    """Return the page of nodes, by pipeline and in the order in which they run, and of the catalog."""
    lines = [
        "# Nodes and data sets\n",
        NOTE,
        "\n`make viz` draws the same. `params:NAME` is a block of the [parameters](parameters.md).",
        "`.venv/bin/kedro run --nodes NAME` runs one node.\n",
    ]
    for name, pipeline in register_pipelines().items():
        if name != "__default__":
            lines.append(f"## {name}\n")
            rows = ((f"`{node.name}`", names(node.inputs), names(node.outputs)) for node in pipeline.nodes)
            lines += table(("node", "reads", "makes"), rows)
    lines += [
        "## The catalog\n",
        "In `conf/base/catalog_*.yml`. `make lab` opens a notebook in which `catalog.load(NAME)` reads one.\n",
    ]
    entries = catalog()
    lines += table(
        ("data set", "kind", "where"),
        (
            (
                f"`{name}`",
                f"`{entry['type'].rpartition('.')[2]}`",
                f"`{entry['filepath']}`" if "filepath" in entry else f"`{file}`",
            )
            for name, (file, entry) in sorted(entries.items())
        ),
    )
    return "\n".join(lines).rstrip() + "\n"


def names(found: Iterable[str]) -> str:
    """Return names as code."""
    return ", ".join(f"`{name}`" for name in found)


PAGES = {"parameters.md": parameters_page, "commands.md": commands_page, "nodes.md": nodes_page}


def main() -> int:
    """Write the pages, or check them."""
    check, stale = "--check" in sys.argv[1:], []
    for name, page in PAGES.items():
        file, text = FOLDER / name, page()
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                file.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"Not current: {', '.join(stale)}. Run scripts/reference.py (or make docs).", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
