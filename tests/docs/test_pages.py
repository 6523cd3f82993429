"""What the documents say is so: commands, parameters, files and pages that they name exist; what is written from the code is current."""

import functools
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator

import click
import pytest
import yaml
from commands import ROOT
from documents import DOCUMENTS, MARKDOWN, MARKER, SITE, blocks, code_in_sentences, name_of
from kedro.config import OmegaConfigLoader

from luthier.cli import cli
from luthier.configuration import validate_parameters
from luthier.errors import UserError
from luthier.pipeline_registry import PARAMETERS, register_pipelines
from luthier.settings import CONFIG_LOADER_ARGS

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
sys.path.insert(0, str(ROOT / "scripts"))
KEDROS_OWN = {"airflow", "viz", "jupyter", "mlflow", "catalog", "--help"}
BASE = OmegaConfigLoader(str(ROOT / "conf"), env="base", **CONFIG_LOADER_ARGS)["parameters"]
every_document = pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)


def merged(base, overlay):
    """Lay one nested mapping over another."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: merged(base.get(key), value) for key, value in overlay.items()}


def assert_valid(overlay, where):
    """Assert that parameters are right when they are laid over those of `conf/base`."""
    try:
        validate_parameters(merged(BASE, overlay), PARAMETERS, [])
    except UserError as error:
        raise AssertionError(f"{where}: {error}") from None


def commands_of(page) -> Iterator[list[str]]:
    """Yield each command of a document, in blocks and in sentences, as words."""
    lines = [line for block in blocks(page) if block.language == "bash" for line in block.text.replace("\\\n", " ").splitlines()]
    for line in [*lines, *code_in_sentences(page)]:
        if re.match(r"(make|kedro|\.venv/bin/kedro) ", line):
            yield shlex.split(line, comments=True)


@every_document
def test_commands_exist_and_take_what_they_are_given(page):
    for program, *arguments in commands_of(page):
        where = f"{name_of(page)}: {program} {shlex.join(arguments)}"
        if program == "make":
            assert {word for word in arguments if "=" not in word} <= TARGETS, where
        elif arguments[0] not in cli.commands:
            assert arguments[0] in KEDROS_OWN or arguments[0] == "NAME", where
        elif arguments[1:]:  # a name alone speaks of the command
            try:
                given = cli.commands[arguments[0]].make_context(arguments[0], arguments[1:]).params
            except click.UsageError as error:
                if isinstance(error, click.BadOptionUsage) and len(arguments) == 2:
                    continue  # an option's name alone speaks of the option
                if isinstance(error, click.BadParameter) and error.format_message().endswith("does not exist."):
                    continue  # it is the reader's file
                raise AssertionError(f"{where}: {error.format_message()}") from None
            assert given.get("pipeline", "__default__") in {*register_pipelines(), None}, where
            assert given.get("env") is None or (ROOT / "conf" / given["env"]).is_dir(), where
            assert_valid(given.get("params", {}), where)


@every_document
def test_parameters_in_yaml_are_valid(page):
    for block in blocks(page):
        if block.language == "yaml":
            values = yaml.safe_load(block.text)
            # other YAML, such as a workflow's, shares no key with ours
            if PARAMETERS.keys() & values.keys():
                assert_valid(values, block.place)


def rows_to_write(page) -> Iterator[tuple[str, str]]:
    """Yield (block, code) of each row of a table `you want to | write under BLOCK in ...`."""
    tokens, block, column = MARKDOWN.parse(page.read_text(encoding="utf-8")), None, 0
    for before, token in zip(tokens, tokens[1:], strict=False):
        if token.type in ("table_open", "table_close"):
            block = None
        elif token.type == "tr_open":
            column = 0
        elif token.type == "inline" and before.type in ("th_open", "td_open"):
            column += 1
            if before.type == "th_open" and (named := re.match(r"write under `(\w+)`", token.content)):
                block = named[1]
            elif before.type == "td_open" and block and column == 2:
                yield from ((block, part.content) for part in token.children or () if part.type == "code_inline")


@pytest.mark.parametrize("page", SITE, ids=name_of)
def test_what_a_table_says_to_write_is_valid(page):
    for block, code in rows_to_write(page):
        if re.match(r"\w+: ", code):
            assert_valid({block: yaml.safe_load(code)}, f"{name_of(page)}: {code}")


def test_tables_of_what_to_write_are_found():
    assert {block for page in SITE for block, _ in rows_to_write(page)} >= {"data_processing", "evaluation"}


@functools.cache
def schema_of(block):
    """Return the JSON Schema of a block of parameters."""
    return PARAMETERS[block].model_json_schema()


def is_parameter(path: list[str]) -> bool:
    """Whether a parameter can stand there: keys of a map may have any name."""
    schema = schema_of(path[0])
    found = [schema]
    for key in path[1:]:
        found = [one["properties"].get(key, {}) if "properties" in one else one.get("additionalProperties", {}) for one in found]
        inner = [kind for one in found if isinstance(one, dict) for kind in one.get("anyOf", [one])]
        found = [schema["$defs"][kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind for kind in inner if kind]
    return bool(found)


@every_document
def test_parameters_in_sentences_exist(page):
    for code in code_in_sentences(page):
        block, *keys = code.partition("=")[0].split(".")
        is_file = keys and keys[-1] in ("safetensors", "json", "db", "py")
        if block in PARAMETERS and keys and all(re.fullmatch(r"\w+", key) for key in keys) and not is_file:
            assert is_parameter([block, *keys]), f"{name_of(page)}: there is no parameter {code}"


@every_document
def test_a_block_of_commands_is_run_or_says_why_not(page):
    for block in blocks(page):
        shown = re.search(r"^(\$ |make \w|(\.venv/bin/)?kedro \w)", block.text, re.MULTILINE)
        assert block.language in ("bash", "python") or not shown, f"{block.place}: commands are ```bash"
        if block.language == "bash" and block.comment.startswith("<!--"):
            marker = MARKER.fullmatch(block.comment)
            assert marker, f"{block.place}: {block.comment} is none of <!-- not run: REASON --> and <!-- run by TEST: REASON -->"
            if marker["tests"]:
                file, _, test = marker["tests"].partition("::")
                assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), (
                    f"{block.place}: there is no {marker['tests']}"
                )
        elif block.language == "bash":
            assert page in SITE, f"{block.place}: only pages of docs/ are run: say where it is run, or why not"


@functools.cache
def anchors(page) -> set[str]:
    """Return the anchors of a document's headings."""
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    titles = [after.content for token, after in zip(tokens, tokens[1:], strict=False) if token.type == "heading_open"]
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@every_document
def test_links_lead_somewhere(page):
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        for part in token.children or ():
            target = part.attrGet("href") or part.attrGet("src")
            if part.type in ("link_open", "image") and not re.match(r"[a-z]+:", target):
                path, _, anchor = target.partition("#")
                file = (page.parent / path).resolve() if path else page
                assert file.exists(), f"{name_of(page)}: {target}"
                assert page not in SITE or file.is_relative_to(ROOT / "docs"), f"{name_of(page)}: {target} is no page of the site"
                assert not anchor or anchor in anchors(file), f"{name_of(page)}: {target}"


def test_the_navigation_lists_every_page_once():
    def pages(entries):
        for entry in entries:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    assert sorted(pages(site["project"]["nav"])) == [page.relative_to(ROOT / "docs").as_posix() for page in SITE]


def every_command(group, *names):
    for name, command in group.commands.items():
        yield " ".join((*names, name)), command
        if isinstance(command, click.Group):
            yield from every_command(command, *names, name)


@pytest.mark.parametrize(("name", "command"), every_command(cli), ids=str)
def test_the_reference_shows_every_command_with_its_options(name, command):
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    section = re.search(rf"^##+ {name}\n(.*?)(?=^##|\Z)", page, re.M | re.S)
    assert section, f"no section {name}"
    for option in (one for one in command.params if isinstance(one, click.Option)):
        assert f"`{', '.join(option.opts)}" in section[1]


def test_the_reference_is_current():
    import reference

    stale = [name for name, page in reference.PAGES.items() if (reference.FOLDER / name).read_text(encoding="utf-8") != page()]
    assert not stale, "make docs writes them"


def test_every_parameter_is_described():
    page = (ROOT / "docs" / "reference" / "parameters.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*)\*[^*]+\* \|$", page, re.MULTILINE)
    assert len(rows) > 200
    assert not [name for name, words in rows if not words.strip()]


def test_the_diagrams_are_current():
    import diagrams

    for name in ("loop", "request"):
        drawn = (ROOT / "docs" / "images" / f"{name}.svg").read_text(encoding="utf-8")
        assert drawn == getattr(diagrams, name)(), f"{name}.svg: run scripts/diagrams.py"
