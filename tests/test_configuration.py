"""Every mistake in the configuration is told at once, with file, line and a suggestion; what is shipped is right."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.config import OmegaConfigLoader
from pydantic import BaseModel, ValidationError

from luthier.configuration import DataParameters, FolderParameters, Parameters, validate_parameters
from luthier.errors import UserError, did_you_mean
from luthier.pipeline_registry import PARAMETERS
from luthier.pipelines.data_processing.parameters import Deduplicate, Split
from luthier.settings import CONFIG_LOADER_ARGS

CONF = Path(__file__).resolve().parents[1] / "conf"
ENVIRONMENTS = sorted({path.parent.name for path in CONF.glob("*/parameters*.yml")})
GOOD = {
    "seed": 0,
    "folders": {"root": "/p", "base_models": "/b", "shards": "/s", "work": "/w"},
    "model": {"base": "tiny:llama"},
    "data": {"path": "x.jsonl", "user": "{{ a }}", "assistant": "{{ b }}"},
}


def problems(values, folders=(), overrides=None):
    """Return the lines of the error that the values cause."""
    with pytest.raises(UserError) as caught:
        validate_parameters(values, PARAMETERS, list(folders), overrides)
    first, *rest = str(caught.value).split("\n  ")
    assert "nothing was run" in first
    return rest


def merged(base, overlay):
    """Lay one nested mapping over another."""
    return {
        key: merged(base[key], overlay[key])
        if isinstance(base.get(key), dict) and isinstance(overlay.get(key), dict)
        else overlay.get(key, base.get(key))
        for key in base | overlay
    }


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_shipped_environment_validates_over_base(environment):
    loader = OmegaConfigLoader(str(CONF), env=environment, **CONFIG_LOADER_ARGS)
    validate_parameters(loader["parameters"], PARAMETERS, [CONF / environment, CONF / "base"])


@pytest.mark.parametrize("file", sorted(CONF.glob("*/parameters*.yml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_key_would_be_missed_if_it_were_misspelt(file):
    # the loader and the models agree on every key: adding an x to any of them is an error that names the right key
    base = OmegaConfigLoader(str(CONF), env="base", **CONFIG_LOADER_ARGS)["parameters"]
    checked = 0
    for block, values in yaml.safe_load(file.read_text()).items():
        if isinstance(values, dict):
            for key in values:
                wrong = merged(base, {block: {f"{key}x": 1}})
                (line,) = problems(wrong)
                assert f"{block}.{key}x: unknown key" in line
                assert key in line.split("unknown key")[1]
                checked += 1
    assert checked


def test_the_smallest_configuration_is_enough():
    validate_parameters(GOOD, PARAMETERS, [])


def test_all_problems_are_told_at_once_with_file_line_and_suggestion(tmp_path):
    for name in ("local", "base"):
        (tmp_path / name).mkdir()
    (tmp_path / "base/parameters.yml").write_text("# a comment\nseed: one\n\ntraining:\n  epochs: 3\n  lora:\n    rank: 0\n")
    (tmp_path / "base/parameters_data.yml").write_text("data_processing:\n  split:\n    validation: 0.5\n    tset: 0.1\n")
    (tmp_path / "local/parameters.yml").write_text("training:\n  epochs: -1\n  lerning_rate: 0.1\n")
    values = GOOD | {
        "seed": "one",
        "training": {"epochs": -1, "lerning_rate": 0.1, "lora": {"rank": 0}},
        "data_processing": {"split": {"validation": 0.5, "tset": 0.1}},
        "evalution": {},
        "data": {"path": "x", "user": "y", "format": "xml"},
    }
    told = "\n".join(problems(values, [tmp_path / "local", tmp_path / "base"]))
    for expected in (
        "base/parameters.yml:2  seed: must be a whole number, not 'one'",
        "local/parameters.yml:2  training.epochs:",
        "local/parameters.yml:3  training.lerning_rate: unknown key (did you mean 'learning_rate'?)",
        "base/parameters.yml:7  training.lora.rank:",
        "base/parameters_data.yml:4  data_processing.split.tset: unknown key (did you mean 'test'?)",
        "--params  evalution: unknown block (did you mean 'evaluation'?)",
        "--params  data.format:",
    ):
        assert expected in told
    assert len(told.splitlines()) == 7


def test_a_value_that_is_none_of_several_kinds_is_told_once_and_where_it_was_written(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/parameters.yml").write_text("training:\n  lora:\n    targets: (q_proj\n")
    for wrong, told in (
        ("(q_proj", "is not a regular expression: missing"),
        (3, "a valid string, or input should be a valid list"),
    ):
        (line,) = problems(GOOD | {"training": {"lora": {"targets": wrong}}}, [tmp_path / "base"])
        assert line.startswith("base/parameters.yml:3  training.lora.targets: ")
        assert told in line
        assert line.endswith(f"not {wrong!r}")


def test_the_strongest_folder_is_named_as_the_origin(tmp_path):
    for name, line in (("local", "training: {epochs: 0}"), ("base", "\n\ntraining: {epochs: 0}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "parameters_training.yml").write_text(line)
    values = GOOD | {"training": {"epochs": 0}}
    assert problems(values, [tmp_path / "local", tmp_path / "base"])[0].startswith("local/parameters_training.yml:1  ")
    assert problems(values, [tmp_path / "base", tmp_path / "local"])[0].startswith("base/parameters_training.yml:3  ")
    assert problems(values)[0].startswith("--params  ")


def test_a_key_that_resembles_nothing_gets_the_list_of_known_ones():
    (line,) = problems(GOOD | {"evaluation": {"qqqq": 1}})
    assert "known keys: max_new_tokens" in line


def test_a_key_within_a_list_or_a_named_block_is_told_with_its_line_and_the_known_ones(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/parameters.yml").write_text(
        "monitoring:\n  experiment:\n    guardrails:\n      - {metric: errors, margin: 0.1}\n"
        "      - metric: rating\n        lower_is_better: false\n        margin: 0.1\n"
    )
    rails = [{"metric": "errors", "margin": 0.1}, {"metric": "rating", "lower_is_better": False, "margin": 0.1}]
    wrong = {"monitoring": {"experiment": {"guardrails": rails}}}
    (line,) = problems(GOOD | wrong, [tmp_path / "base"])
    assert line.startswith("base/parameters.yml:6  monitoring.experiment.guardrails.1.lower_is_better: unknown key")
    assert "known keys: metric, margin" in line
    (line,) = problems(GOOD | wrong, [tmp_path / "base"], wrong)
    assert line.startswith("--params  ")
    (line,) = problems(GOOD | {"data": {"sources": {"mine": {"path": "x", "wieght": 1}}, "user": "y"}})
    assert "data.sources.mine.wieght: unknown key (did you mean 'weight'?)" in line


@pytest.mark.parametrize("seed", [True, None, 1.5, "3"])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    (line,) = problems(GOOD | {"seed": seed})
    assert "seed: must be a whole number" in line


@pytest.mark.parametrize("block", [0, False, "", [], 3, "text", [1]])
def test_a_block_that_is_no_mapping_is_refused(block):
    (line,) = problems(GOOD | {"training": block})
    assert "training: " in line


def test_an_empty_block_means_the_defaults():
    validate_parameters(GOOD | {"training": None, "evaluation": {}}, PARAMETERS, [])


def test_a_key_that_is_no_text_is_told_like_any_other():
    told = "\n".join(problems(GOOD | {3: {}, "training": {4: 1}}))
    assert "3: unknown block" in told
    assert "training.4" in told


def test_nothing_is_refused_twice_and_nothing_forgotten():
    # as many mistakes as there are fields: each is told once
    wrong = {name: {f"{field}_": None for field in model.model_fields} for name, model in PARAMETERS.items()}
    missing = [f for m in PARAMETERS.values() for f, field in m.model_fields.items() if field.is_required()]
    lines = problems({"seed": 0} | wrong)
    assert len(lines) == len(set(lines)) == sum(len(block) for block in wrong.values()) + len(missing)


@given(st.text(), st.lists(st.text(min_size=1)))
@settings(deadline=None, max_examples=100)
def test_a_suggestion_is_one_of_the_known_words_and_an_exact_word_suggests_itself(word, known):
    hint = did_you_mean(word, known)
    assert hint == "" or any(repr(candidate) in hint for candidate in known)
    if known:
        assert repr(known[0]) in did_you_mean(known[0], known)


def blocks(model: type[BaseModel]):
    """Return a model and all models inside of it."""
    inner = [f.annotation for f in model.model_fields.values()]
    return [model, *(b for a in inner if isinstance(a, type) and issubclass(a, BaseModel) for b in blocks(a))]


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_every_block_is_frozen_strict_about_keys_and_documented(name):
    for model in blocks(PARAMETERS[name]):
        assert issubclass(model, Parameters)
        assert model.model_config["extra"] == "forbid"
        assert model.model_config["frozen"]
        for key, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{key} has no docstring"


def test_relative_paths_begin_at_the_root_and_others_stay():
    folders = FolderParameters(root="/p", base_models="/b", shards="", work="/w")
    assert folders.locate("data/x") == "/p/data/x"
    assert folders.locate("/data/x") == "/data/x"
    assert folders.locate("s3://bucket/x") == "s3://bucket/x"
    assert folders.locate("~/x") == str(Path.home() / "x")


@given(st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=100)
def test_a_split_leaves_something_for_training(validation, test):
    try:
        split = Split(validation=validation, test=test)
    except ValidationError:
        assert validation + test >= 1 or test == 0 or validation == 1
    else:
        assert split.validation + split.test < 1


def test_bands_divide_permutations():
    with pytest.raises(ValidationError, match="must divide"):
        Deduplicate(permutations=128, bands=33)
    assert DataParameters(path="x", user="u", assistant="a").format == "auto"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({}, "give either data.path or data.sources"),
        ({"path": "x", "sources": {"a": {"path": "y"}}}, "give either data.path or data.sources"),
        ({"path": "x", "user": "{{ a }}"}, "data.user and data.assistant go together"),
    ],
)
def test_data_that_names_no_file_two_ways_or_half_a_template_is_refused(data, told):
    with pytest.raises(ValueError, match=told):
        DataParameters(**data)


def test_a_single_path_is_a_source_named_by_its_file():
    assert list(DataParameters(path="raw/mine.jsonl.gz").all_sources()) == ["mine"]
    assert list(DataParameters(path="s3://bucket/folder/").all_sources()) == ["folder"]
    assert list(DataParameters(path="raw/*").all_sources()) == ["raw"]
