"""Candidates come from parameters; what answers is named by the bytes that it is made of."""

import pytest
from sharp import folders_in

from luthier.candidates import TAKEN, Asking, Candidate, Candidates, base_answerer, fetch_version
from luthier.configuration import ModelParameters, Parameters, validate_parameters
from luthier.errors import UserError


class _Block(Parameters):
    candidates: Candidates = ()


def told(*candidates):
    """Return what is wrong with candidates."""
    with pytest.raises(UserError) as caught:
        validate_parameters({"seed": 0, "evaluation": {"candidates": list(candidates)}}, {"evaluation": _Block}, [])
    return str(caught.value)


HOSTED = {"name": "hosted", "endpoint": {"url": "https://host/v1", "model": "m"}}


def test_a_candidate_is_one_thing_with_a_name_of_its_own():
    for name in TAKEN:
        assert "is taken" in told({"name": name, "version": 3})
    assert "give either version" in told({"name": "a"})
    assert "give either version" in told(HOSTED | {"version": 3})
    assert "'hosted' names more than one candidate" in told(HOSTED, HOSTED)
    assert "evaluation.candidates.0.name" in told({"name": "a b", "version": 3})
    several = _Block(candidates=[HOSTED, {"name": "v3", "version": 3}, {"name": "last", "version": "candidate"}])
    assert [candidate.version for candidate in several.candidates] == [None, 3, "candidate"]
    assert Candidate(name="x", version="3").version == "3"


def test_the_base_is_named_by_its_bytes_and_loaded_when_it_is_asked(tmp_path):
    model, folders = ModelParameters(base="tiny:llama"), folders_in(tmp_path)
    answerers = [
        base_answerer(model, folders, Asking(length, batch, precision))
        for length, batch, precision in ((4, 100, "fp32"), (5, 100, "fp32"), (4, 99, "fp32"), (4, 100, "bf16"))
    ]
    assert len({answerer.identity for answerer in answerers}) == 4
    assert all(answerer.identity.startswith("tiny:llama@") for answerer in answerers)
    asked = [[{"role": "user", "content": "hi"}]]
    for answerer in (answerers[0], answerers[3]):
        (answer,) = answerer.answer(asked, lambda _: None)
        assert answer.tokens <= 4
        assert (
            str(answerer.model()[0].dtype)
            == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}["fp32" if answerer is answerers[0] else "bf16"]
        )


def test_a_version_needs_a_run_that_says_which_registry(tmp_path):
    with pytest.raises(UserError, match=r"inference\.model: no MLflow run says which registry is meant"):
        fetch_version("champion", folders_in(tmp_path), "inference.model")
