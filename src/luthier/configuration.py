"""Parameters as pydantic models: unknown keys are errors, and all errors are told at once in the user's words."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from luthier.errors import UserError, did_you_mean


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


RegularExpression = Annotated[str, AfterValidator(_compiles)]


class Parameters(BaseModel):
    """Base of every block of parameters: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelParameters(Parameters):
    """The model to start from."""

    base: str
    """`packaged:smollm2-135m-instruct`, a hub id such as `Qwen/Qwen3-0.6B`, a local folder, or `tiny:llama` (random)."""
    revision: str | None = None
    """Commit or tag of a hub id: name one, or tomorrow's model may be another one."""


class FolderParameters(Parameters):
    """Where the project stands and where it keeps what is no catalog entry. Absolute paths."""

    root: str
    """The project's root, from which relative paths in parameters begin."""
    base_models: str
    """Base models that are built here: the packaged one in safetensors, the tiny one."""
    shards: str
    """Results of the steps of data processing, by what decided them."""
    work: str
    """Unfinished and finished training jobs, each under the fingerprint of all that decides its result."""
    checkpoints: str = ""
    """Where the newest checkpoints of jobs are copied to, if it is a URI."""

    @property
    def registry(self) -> Path:
        """Packages that were fetched from the registry, by their hash."""
        return Path(self.work).parent / "registry"

    @property
    def answers(self) -> Path:
        """Answers of models, kept so that nobody asks twice."""
        return Path(self.work).parents[1] / "07_model_output" / "answers"

    def locate(self, path: str) -> str:
        """Make a relative path absolute; URIs and absolute paths stay."""
        return path if "://" in path else str(Path(self.root, Path(path).expanduser()))


SHAPES = ("auto", "template", "messages", "sharegpt", "alpaca", "prompt_completion", "preference", "labelled_text", "text")


class SourceParameters(Parameters):
    """One of several sources of one data set."""

    path: str
    """A file, a folder, or a glob such as `data/01_raw/mine/*.jsonl.gz`: local (relative to the project) or any fsspec URI."""
    format: str = Field(default="auto", pattern="^(auto|jsonl|csv|parquet|json)$")
    """`auto` goes by the file's ending."""
    shape: str = Field(default="auto", pattern=f"^({'|'.join(SHAPES)})$")
    """What a row looks like; `auto` takes the templates of `data` where their columns are there, and recognises the rest."""
    weight: float = Field(default=1.0, gt=0)
    """How often a record is taken in an epoch of training: 2.5 is twice and three times in turn, 0.2 once in five epochs."""
    license: str | None = None
    """The licence of this source, for the data card."""
    optional: bool = False
    """Whether there may be no file yet, as of what users will correct."""


class DataParameters(Parameters):
    """Where the messages are and how a row becomes a conversation: the block to change for your own data."""

    path: str | None = None
    """A file, a folder or a glob: local (relative to the project) or any fsspec URI. Null if there are `sources`."""
    format: str = Field(default="auto", pattern="^(auto|jsonl|csv|parquet|json)$")
    """`auto` goes by the file's ending."""
    shape: str = Field(default="auto", pattern=f"^({'|'.join(SHAPES)})$")
    """What a row looks like; `auto` takes the templates where their columns are there, and recognises the rest."""
    sources: dict[str, SourceParameters] = Field(default_factory=dict)
    """Several sources by name, in place of `path`."""
    id: str | None = None
    """Column that identifies a row, whatever its shape. Null numbers all rows by content, and so are rows of a recognised shape
    that lack the column. Two sources may use one id: with several, a record is called `SOURCE:ID`."""
    system: str | None = None
    """System prompt, the same for every conversation; null leaves the model's own default."""
    user: str | None = None
    """Jinja template over the row's columns: what the user says."""
    assistant: str | None = None
    """Jinja template over the row's columns: the answer to learn. The filter `json` writes compact JSON."""
    label: str | None = None
    """Jinja template over the row's columns: its class, for counts, slices and `augment`; null takes that of the shape, if it has
    one. Of like messages with labels one stays: two labels contradict each other, where two free answers do not. Splits do not
    look at it: shares of labels may differ between them, and the data card says by how much."""
    meta: tuple[str, ...] = ()
    """Columns to keep beside the messages, for slices of the evaluation; personal data is taken out of them too."""
    answer_schema: str | None = None
    """Path of a JSON Schema that each answer must satisfy; null if the answers are plain text or labels."""
    safety_checks: str | None = None
    """Path of must and must-not checks for the model's answers (YAML); null for none. They go with the templates, too."""
    max_rows: int | None = Field(default=None, ge=1)
    """Read only the first rows of each file; null reads all."""

    @model_validator(mode="after")
    def _one_way_to_name_files(self) -> "DataParameters":
        if (self.path is None) == (not self.sources):
            raise ValueError("give either data.path or data.sources (and `path: null` with sources)")
        if (self.user is None) != (self.assistant is None):
            raise ValueError("data.user and data.assistant go together: give both templates or neither")
        return self

    def all_sources(self) -> dict[str, SourceParameters]:
        """Return the sources by name; that of a single path is its file's name without endings."""
        if self.path is None:
            return self.sources
        name = PurePosixPath(self.path.rstrip("/*")).name.split(".")[0] or "data"
        return {name: SourceParameters(path=self.path, format=self.format, shape=self.shape)}

    def called(self, source: str, identity: str) -> str:
        """Return what a record is called whose row has this id: unique in all sources if it is in its own."""
        return f"{source}:{identity}" if len(self.sources) > 1 else identity


def _lines_of_keys(file: Path) -> dict[tuple[str, ...], int]:
    """Map each key path of a YAML file to its line, counted from 1."""
    lines: dict[tuple[str, ...], int] = {}

    def walk(node: yaml.Node | None, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[(*path, str(key.value))] = key.start_mark.line + 1
                walk(value, (*path, str(key.value)))
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                lines[(*path, str(number))] = item.start_mark.line + 1
                walk(item, (*path, str(number)))

    walk(yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), ())
    return lines


def _origin(path: tuple[str, ...], folders: list[Path], overrides: Mapping[str, Any]) -> str:
    """Say which file and line set the key, the strongest overlay first; `--params` where the command line did."""
    given: Any = overrides
    for part in path:
        if isinstance(given, list):
            given = dict(zip(map(str, range(len(given))), given, strict=True))
        given = given.get(part) if isinstance(given, Mapping) else None
    if given is not None:
        return "--params"
    for folder in folders:
        for file in sorted(folder.glob("**/parameters*.yml")):
            line = _lines_of_keys(file).get(path)
            if line is not None:
                return f"{file.parent.name}/{file.name}:{line}"
    return "--params"


def _known_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Names of the fields that stand beside the last element of `path`."""
    blocks = [model]
    for part in path[:-1]:
        fields = [block.model_fields[part] for block in blocks if part in block.model_fields]
        if fields:  # otherwise it is a number in a list of blocks, or a name in a mapping of them
            blocks = [block for field in fields for block in _blocks(field.annotation)]
    return list(dict.fromkeys(name for block in blocks for name in block.model_fields))


def _blocks(kind: Any) -> list[type[BaseModel]]:
    """Return the models in a type: of `Block | None` and `list[Block]` that is `Block`."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [block for inner in get_args(kind) for block in _blocks(inner)]


def _keys(value: Any, loc: tuple[int | str, ...]) -> Iterator[int | str]:
    """Yield of a place that pydantic names what the user wrote, and not which of several kinds of value was tried."""
    for part in loc:
        if part in value if isinstance(value, Mapping) else isinstance(value, list) and isinstance(part, int):
            value = value[part]
            yield part


def validate_parameters(
    values: Mapping[str, Any],
    models: Mapping[str, type[BaseModel]],
    folders: list[Path],
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Check every block of parameters and raise one error that names all problems.

    Args:
        values: the merged parameters, one top-level key a block (`seed` is a plain integer).
        models: the pydantic model of each block.
        folders: the configuration folders, the strongest first, where the origin of a key is looked up.
        overrides: what the command line set.

    Raises:
        UserError: with one line a problem: file, line, key, what is wrong, what is allowed.
    """
    problems = []

    def where(path: tuple[Any, ...]) -> str:
        names = tuple(str(part) for part in path)
        return f"{_origin(names, folders, overrides or {})}  {'.'.join(names)}"

    for name in values:
        if name not in models and name != "seed":
            problems.append(f"{where((name,))}: unknown block{did_you_mean(str(name), [*models, 'seed'])}")
    if not isinstance(values.get("seed"), int) or isinstance(values.get("seed"), bool):
        problems.append(f"{where(('seed',))}: must be a whole number, not {values.get('seed')!r}")
    for name, model in models.items():
        wrong: dict[tuple[Any, ...], list[str]] = {}
        try:
            model.model_validate({} if values.get(name) is None else values[name])
        except ValidationError as error:
            for detail in error.errors():
                path = (name, *detail["loc"])
                if detail["type"] == "extra_forbidden":
                    known = _known_keys(model, detail["loc"])
                    hint = did_you_mean(str(path[-1]), known) or f" (known keys: {', '.join(known)})"
                    problems.append(f"{where(path)}: unknown key{hint}")
                elif detail["type"] == "missing":
                    problems.append(f"{'.'.join(map(str, path))}: is missing")
                else:
                    key = (name, *_keys(values[name], detail["loc"]))
                    message = detail["msg"][0].lower() + detail["msg"][1:].replace("tuple", "list")  # as YAML has it
                    wrong.setdefault(key, [f"not {detail['input']!r}"]).insert(-1, message)
        problems += [f"{where(key)}: {', or '.join(messages)}, {value}" for key, (*messages, value) in wrong.items()]
    if problems:
        raise UserError("The configuration has errors; nothing was run.\n  " + "\n  ".join(problems))
