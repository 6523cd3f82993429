"""Whether answers can be held to a schema is known without a model, and is what holding them to it would say."""

import pytest
from sharp import sharp_tiny

from luthier.constrained import JsonConstraint, check_schema
from luthier.errors import UserError

FOLLOWED = [
    {"type": "object", "properties": {"intent": {"enum": ["praise", "complaint"]}}, "required": ["intent"]},
    {"$defs": {"word": {"type": "string", "pattern": "^[a-z]{1,9}$"}}, "type": "array", "items": {"$ref": "#/$defs/word"}},
    {"anyOf": [{"type": "integer", "minimum": 3}, {"const": None}]},
]
NOT_FOLLOWED = [
    {"type": "strin"},
    {"not": {"type": "string"}},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "array", "uniqueItems": True},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "object", "properties": {"a": {"$ref": "https://example.org/schema"}}},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Return the tokenizer of the tiny model."""
    return sharp_tiny(tmp_path_factory.mktemp("tiny"))[1]


@pytest.mark.parametrize("schema", FOLLOWED)
def test_a_schema_that_can_be_followed_passes(tokenizer, schema):
    check_schema(schema, "room.constrain", "data.answer_schema")
    JsonConstraint(tokenizer, schema)


@pytest.mark.parametrize("schema", NOT_FOLLOWED)
def test_a_schema_that_cannot_be_followed_is_told_without_a_model_for_the_same_reason(tokenizer, schema):
    with pytest.raises(UserError, match="JSON Schema cannot be a constraint") as late:
        JsonConstraint(tokenizer, schema)
    why = str(late.value).split(": ", 1)[1]
    with pytest.raises(UserError, match=r"^room\.constrain: answers cannot be held to data\.answer_schema") as early:
        check_schema(schema, "room.constrain", "data.answer_schema")
    assert why in str(early.value)


def test_what_is_no_schema_is_told():
    for nothing in ({}, None, False):
        with pytest.raises(UserError, match=r"room\.constrain: data\.answer_schema holds no schema.* to false"):
            check_schema(nothing, "room.constrain", "data.answer_schema")
    for other in (True, ["a"], "object"):
        with pytest.raises(UserError, match="it is no JSON object"):
            check_schema(other, "room.constrain", "data.answer_schema")
