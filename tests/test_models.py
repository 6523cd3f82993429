"""A base model is known by its bytes; what cannot be used is refused with a reason."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from luthier.artefacts import staged, verify
from luthier.configuration import FolderParameters, ModelParameters
from luthier.errors import UserError
from luthier.models import Base, ModelDirectory, load_model, load_tokenizer, load_tuned, resolve_base


def folders_in(folder):
    """Return folders below a path."""
    return FolderParameters(root=str(folder), base_models=str(folder / "base"), shards="", work=str(folder / "work"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the tiny base model."""
    return resolve_base(ModelParameters(base="tiny:llama"), folders_in(tmp_path_factory.mktemp("models")))


def logits(model):
    """Return the model's logits for a fixed text."""
    with torch.inference_mode():
        return model.eval()(torch.arange(3, 40)[None]).logits


def test_the_tiny_model_is_the_same_bytes_wherever_it_is_built(tiny, tmp_path):
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    again = resolve_base(ModelParameters(base="tiny:llama"), folders_in(tmp_path))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.folder != tiny.folder
    assert again.identity == tiny.identity
    assert verify(again.folder)["files"] == verify(tiny.folder)["files"]


def test_a_model_is_built_once(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.folder.iterdir()}
    assert resolve_base(ModelParameters(base="tiny:llama"), folders_in(tiny.folder.parents[1])) == tiny
    assert {path: path.stat().st_mtime_ns for path in tiny.folder.iterdir()} == before


def test_the_tiny_model_has_weights_of_text_and_every_token(tiny):
    model, tokenizer = load_model(tiny, torch.float32), load_tokenizer(tiny)
    assert 50_000 < model.num_parameters() < 200_000
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert load_model(tiny, torch.bfloat16).dtype == torch.bfloat16


@given(text=st.text(st.characters(codec="utf-8")))
@settings(deadline=None, max_examples=100)
def test_the_tiny_tokenizer_spells_any_text(tiny_tokenizer, text):
    assert tiny_tokenizer.decode(tiny_tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny):
    """Return the tiny tokenizer."""
    return load_tokenizer(tiny)


def test_a_local_folder_is_known_by_its_bytes_not_by_its_name(tiny, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "one")
    (tmp_path / "one" / "manifest.json").unlink()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (resolve_base(ModelParameters(base=name), folders_in(tmp_path)) for name in ("one", str(tmp_path / "two")))
    assert one.folder == tmp_path / "one"
    assert one.identity.rpartition("@")[2] == two.identity.rpartition("@")[2]
    config = json.loads((tmp_path / "two/config.json").read_text())
    (tmp_path / "two/config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    changed = resolve_base(ModelParameters(base="two"), folders_in(tmp_path))
    assert changed.identity.rpartition("@")[2] != two.identity.rpartition("@")[2]
    assert torch.equal(logits(load_model(one, torch.float32)), logits(load_model(tiny, torch.float32)))


def test_a_folder_that_is_damaged_or_holds_no_model_is_refused(tiny, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "model")
    assert resolve_base(ModelParameters(base="model"), folders_in(tmp_path)).folder
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"model\.safetensors has changed"):
        resolve_base(ModelParameters(base="model"), folders_in(tmp_path))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"\*\.safetensors is missing"):
        resolve_base(ModelParameters(base="model"), folders_in(tmp_path))
    (tmp_path / "model/config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        resolve_base(ModelParameters(base="model"), folders_in(tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("packaged:smollm2-135m-instuct", r"did you mean 'smollm2-135m-instruct'"),
        ("packaged:", "known: smollm2"),
        ("tiny:lama", r"did you mean 'llama'"),
        ("./nothing", "there is no folder"),
        ("data/06_models/nothing", "there is no folder"),
        ("/nothing/at/all", "there is no folder"),
    ],
)
def test_a_model_that_is_not_there_is_a_users_error_at_once(tmp_path, name, expected):
    with pytest.raises(UserError, match=expected):
        resolve_base(ModelParameters(base=name), folders_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_weights_in_pickle_are_never_loaded(tiny, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save(load_model(tiny, torch.float32).state_dict(), tmp_path / "model/pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(Base("x", tmp_path / "model", "x"), torch.float32)


def test_a_tokenizer_without_padding_pads_with_the_end_marker(tiny, tmp_path):
    tokenizer = load_tokenizer(tiny)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(tiny.folder / "config.json", tmp_path)
    found = load_tokenizer(Base("x", tmp_path, "x"))
    assert found.pad_token_id == found.eos_token_id


def save(model, folder, base, method):
    """Save a model as training does."""
    with staged(folder, base={"identity": base.identity}, method=method) as staging:
        model.save_pretrained(staging)
    return ModelDirectory(folder)


def test_an_adapter_loads_on_its_own_base_and_on_no_other(tiny, tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(load_model(tiny, torch.float32), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned = save(model, tmp_path / "tuned", tiny, "lora")
    assert tuned.sha256 == verify(tuned.folder)["sha256"]
    found = logits(load_tuned(tiny, tuned, torch.float32))
    assert torch.allclose(found, logits(model), atol=1e-6)
    assert not torch.allclose(found, logits(load_model(tiny, torch.float32)), atol=1e-3)
    with pytest.raises(UserError, match="was trained on tiny:llama"):
        load_tuned(Base("other", tiny.folder, "other@0"), tuned, torch.float32)


def test_a_full_set_of_weights_loads_without_the_base(tiny, tmp_path):
    model = load_model(tiny, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    tuned = save(model, tmp_path / "tuned", tiny, "full")
    away = Base(tiny.name, tmp_path / "gone", tiny.identity)
    assert torch.equal(logits(load_tuned(away, tuned, torch.float32)), logits(model))
