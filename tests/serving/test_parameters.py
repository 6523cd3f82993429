"""Parameters of serving: mistakes are told by their key, secrets are not repeated, and the shipped ones are the defaults."""

import pytest
import yaml
from commands import ROOT

from luthier.configuration import FolderParameters, validate_parameters
from luthier.errors import UserError
from luthier.serving.parameters import LOG_VARIABLE, LogParameters, ServingParameters
from luthier.serving.records.log import RequestLog
from luthier.serving.routing import resolve_experiment

FOLDERS = FolderParameters(root="/p", base_models="/p/b", shards="/p/s", work="/p/data/06_models/work")


def told(**values) -> str:
    with pytest.raises(UserError) as caught:
        validate_parameters({"seed": 0, "serving": values}, {"serving": ServingParameters}, [])
    return str(caught.value)


def test_every_field_says_what_it_is():
    def undocumented(model):
        for name, field in model.model_fields.items():
            if not field.description:
                yield f"{model.__name__}.{name}"

    blocks = [
        ServingParameters,
        *(field.annotation for field in ServingParameters.model_fields.values() if hasattr(field.annotation, "model_fields")),
    ]
    assert len(blocks) == 5
    assert [name for block in blocks for name in undocumented(block)] == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prot": 80}, "serving.prot: unknown key (did you mean 'port'?)"),
        ({"port": 70_000}, "serving.port: input should be less than or equal to 65535"),
        ({"log": {"text": "raw"}}, "serving.log.text: input should be 'scrubbed' or 'none'"),
        ({"log": {"uri": "mysql://h/d"}}, "must begin with sqlite:///"),
        ({"limits": {"total_seconds": 5}}, "total_seconds must not be below"),
        ({"experiment": {"variants": []}}, "serving.experiment.variants"),
        (
            {"experiment": {"variants": [{"name": "a", "version": 3, "weight": 0.5}]}},
            "the weights must add up to 1; they add up to 0.5",
        ),
        ({"experiment": {"variants": [{"name": "a", "version": 3, "weight": 0.5}] * 2}}, "a: several variants have this name"),
        (
            {
                "experiment": {
                    "variants": [{"name": "a", "version": 3, "weight": 1 / 3}, {"name": "b", "version": 3, "weight": 2 / 3}]
                }
            },
            "in steps of",
        ),
        ({"experiment": {"id": "a b"}}, "serving.experiment.id"),
        ({"engine": {"kind": "upstream"}}, "needs urls"),
        ({"engine": {"urls": {"champion": ["http://h/v1"]}}}, "urls are for kind: upstream"),
        ({"engine": {"kind": "upstream", "urls": {"champion": ["h:8000"]}}}, "must begin with http://"),
        ({"engine": {"kind": "upstream", "urls": {"champion": []}}}, "champion: names no URL"),
    ],
)
def test_a_mistake_is_told_by_its_key(values, expected):
    assert expected in told(**values)


@pytest.mark.parametrize(
    "uri", ["postgresql://u:hidden@h/d", "postgresql+psycopg://u:hidden@h:5432/d", "postgresql://h/d?user=u&password=hidden"]
)
def test_a_password_is_refused_and_not_repeated(uri):
    error = told(log={"uri": uri})
    assert "serving.log.uri" in error
    assert "PGPASSWORD" in error
    assert "hidden" not in error


@pytest.mark.parametrize(
    ("uri", "environ", "expected"),
    [
        (LogParameters().uri, {}, "sqlite:////p/data/06_models/serving/requests.db"),
        ("sqlite:///log/r.db", {}, "sqlite:////p/log/r.db"),
        ("sqlite:////srv/r.db", {}, "sqlite:////srv/r.db"),
        ("postgresql+psycopg://u@h/d", {}, "postgresql+psycopg://u@h/d"),
        ("sqlite:////srv/r.db", {LOG_VARIABLE: "postgresql+psycopg://u:p@h/d"}, "postgresql+psycopg://u:p@h/d"),
    ],
)
def test_the_log_lies_where_it_is_said_to(uri, environ, expected):
    assert LogParameters(uri=uri).locate(FOLDERS, environ) == expected
    assert RequestLog(expected).database.url.render_as_string(hide_password=False) == expected


def test_the_parameters_of_an_experiment_make_one():
    given = ServingParameters.model_validate(
        {
            "experiment": {
                "id": "e",
                "shadow": "candidate",
                "variants": [{"name": "a", "version": "champion", "weight": 0.9}, {"name": "b", "version": 4, "weight": 0.1}],
            }
        }
    ).experiment
    variants = {variant.name: (variant.version, variant.weight) for variant in given.variants}
    made = resolve_experiment(given.id, variants, given.shadow, {"champion": 3, "candidate": 5})
    assert (made.id, made.shadow, made.ranges) == ("e", 5, {"a": (0, 9000), "b": (9000, 10_000)})
    assert [variant.version for variant in made.variants] == [3, 4]


def test_what_is_shipped_is_the_default():
    shipped = yaml.safe_load((ROOT / "conf/base/parameters_serving.yml").read_text())["serving"]
    shipped["log"].pop("uri")
    assert ServingParameters(**shipped) == ServingParameters()
