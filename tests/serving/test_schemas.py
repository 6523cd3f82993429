"""A client's schema is compiled once, if a process with little time and memory can compile it, and else refused for good."""

import asyncio

import psutil
import pytest
from sharp import sharp_tiny

from luthier.artefacts import canonical_json
from luthier.constrained import JsonConstraint
from luthier.errors import UserError
from luthier.serving.api.chat import LONGEST_SCHEMA
from luthier.serving.engines import schemas as module
from luthier.serving.engines.schemas import Schemas

GOOD = {"type": "object", "properties": {"intent": {"enum": ["praise", "büro"]}}, "required": ["intent"]}
ENDLESS = {"allOf": [{"type": "string", "pattern": f".*{letter}.*"} for letter in "abcdefghijklmnopqrstuvwxyz"]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Return the tokenizer of the tiny model."""
    return sharp_tiny(tmp_path_factory.mktemp("tiny"))[1]


@pytest.fixture
def compiled():
    """Return the schemas that were compiled, in their order."""
    return []


@pytest.fixture
def schemas(tokenizer, compiled):
    """Return the schemas of the tiny model, none of them known yet."""

    def compile_it(schema):
        compiled.append(schema)
        return JsonConstraint(tokenizer, schema)

    return Schemas(compile_it)


@pytest.fixture
def tried(monkeypatch):
    """Return the grammars that were tried, in their order."""
    grammars, really = [], module._tried

    async def counted(grammar):
        grammars.append(grammar)
        await really(grammar)

    monkeypatch.setattr(module, "_tried", counted)
    return grammars


def test_a_schema_is_tried_and_compiled_once_for_all_who_ask(schemas, tried, compiled):
    async def scenario():
        asked = (schemas.constraint(dict(reversed(GOOD.items()))) for _ in range(5))
        return await asyncio.gather(schemas.constraint(GOOD), *asked)

    assert len(set(map(id, asyncio.run(scenario())))) == 1
    assert compiled == [GOOD]
    assert len(tried) == 1


@pytest.mark.parametrize("wrong", [{"type": "strin"}, {"not": {"type": "string"}}, {"type": "string", "pattern": "("}])
def test_what_llguidance_refuses_is_refused_in_its_own_words_and_never_compiled_here(schemas, tokenizer, compiled, wrong):
    with pytest.raises(UserError) as here:
        JsonConstraint(tokenizer, wrong)
    with pytest.raises(UserError) as there:
        asyncio.run(schemas.constraint(wrong))
    assert str(there.value) == str(here.value)
    assert compiled == []


def test_a_schema_that_takes_too_much_is_refused_and_not_tried_again(schemas, tried, compiled):
    for _ in range(2):
        with pytest.raises(UserError, match=r"takes more than 1 s or 128 MB\. Write it with fewer patterns"):
            asyncio.run(schemas.constraint(ENDLESS))
    assert len(tried) == 1
    assert compiled == []
    assert asyncio.run(schemas.constraint(GOOD))


def test_who_goes_away_ends_the_trial_and_the_next_is_tried(schemas):
    def trials():
        return [one for one in psutil.Process().children() if "luthier.serving.engines.schema_trial" in one.cmdline()]

    async def scenario():
        gone = asyncio.create_task(schemas.constraint(ENDLESS))
        while not trials():
            await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert trials() == []
        return await schemas.constraint(GOOD)

    assert asyncio.run(scenario())


def test_only_so_many_schemas_are_kept(schemas, compiled, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    numbers = [{"type": "integer", "minimum": least} for least in (1, 2, 3)]

    async def scenario():
        for schema in (*numbers, numbers[2], numbers[1], numbers[0]):
            await schemas.constraint(schema)

    asyncio.run(scenario())
    assert compiled == [*numbers, numbers[0]]


def test_a_schema_as_large_as_a_request_may_hold_is_compiled(schemas):
    form = {"type": "string", "pattern": r"^[a-z]{1,50}@[a-z]+\.com$", "maxLength": 500}
    large = {"type": "object", "properties": {f"p{number}": form for number in range(400)}}
    assert LONGEST_SCHEMA * 0.9 < len(canonical_json(large)) <= LONGEST_SCHEMA
    assert asyncio.run(schemas.constraint(large))
