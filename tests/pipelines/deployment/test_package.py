"""A package holds the model that was evaluated and what is known about it, and equal models give equal bytes."""

import json
import subprocess

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from luthier.artefacts import read_manifest, staged
from luthier.configuration import ModelParameters
from luthier.errors import UserError
from luthier.models import ModelDirectory, load_model, load_tuned, resolve_base
from luthier.packages import check_package, facts_of, load_package
from luthier.pipelines.deployment.nodes import check_parity, package_model
from luthier.pipelines.deployment.package import Ingredients, make_package
from luthier.pipelines.deployment.parameters import DeploymentParameters, Parity
from tests.pipelines.deployment.tiny_packages import (
    EVIDENCE,
    MAX_NEW_TOKENS,
    PROMPT,
    folders_in,
    key_pair,
    make,
    random_adapter,
)


def logits(model):
    with torch.inference_mode():
        return model.eval()(torch.arange(3, 50)[None]).logits.float()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_merged_weights_are_those_of_the_evaluated_model_rounded_once(base, tuned, tmp_path, precision, dtype):
    package = make(tmp_path / "package", base, tuned, precision=precision)
    assert facts_of(package.folder)["dtype"] == dtype
    wanted = load_tuned(base, tuned, torch.float32).state_dict()
    with safe_open(package.folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) <= set(wanted)
        for name in wanted.keys() & set(file.keys()):
            assert torch.equal(file.get_tensor(name), wanted[name].to(getattr(torch, dtype))), name


def test_all_weights_trained_are_packaged_as_they_are(base, tmp_path):
    model = load_model(base, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    with staged(tmp_path / "full", base={"identity": base.identity}, method="full") as staging:
        model.save_pretrained(staging)
    full = ModelDirectory(tmp_path / "full")
    package = make(tmp_path / "package", base, full)
    assert torch.equal(logits(load_package(package.folder, torch.float32)[0]), logits(model))
    with pytest.raises(UserError, match="there is no adapter"):
        make(tmp_path / "adapter", base, full, kind="adapter")
    assert not (tmp_path / "adapter").exists()


def test_equal_models_are_equal_bytes_and_another_model_is_another_root_hash(home, base, tuned, tmp_path):
    private, _ = key_pair(tmp_path / "keys")
    one, two = (make(tmp_path / name, base, tuned, signing_key=str(private)) for name in ("one", "two"))
    assert read_manifest(one.folder) == read_manifest(two.folder)
    other = make(tmp_path / "other", base, random_adapter(tmp_path / "other-tuned", base, seed=1), signing_key=str(private))
    assert other.sha256 != one.sha256


def test_what_travels_with_the_model_is_what_was_given(base, tuned, tmp_path):
    folder = make(tmp_path / "package", base, tuned).folder
    read = {name: json.loads((folder / name).read_text()) for name in ("prompt_settings.json", "gate.json", "lineage.json")}
    assert type(PROMPT).model_validate(read["prompt_settings.json"]) == PROMPT
    assert read["gate.json"] == EVIDENCE["gate"]
    assert read["lineage.json"] == EVIDENCE["lineage"]
    assert json.loads((folder / "answer_schema.json").read_text()) == {"type": "object"}
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["do_sample"], generation["max_new_tokens"], generation["eos_token_id"]) == (False, MAX_NEW_TOKENS, [2])
    facts = facts_of(folder)
    assert facts["base"] == {"name": base.name, "identity": base.identity}
    assert facts["tuned"] == tuned.sha256


def test_a_package_without_evidence_says_that_it_has_none(base, tuned, tmp_path):
    made_of = Ingredients(base, tuned, PROMPT, MAX_NEW_TOKENS, {})
    folder = make_package(tmp_path / "package", made_of, DeploymentParameters(precision="fp32")).folder
    card = (folder / "model_card.md").read_text()
    for missing in ("No evaluation was given", "No gate decided", "No report of the data was given", "No lineage was given"):
        assert missing in card
    assert json.loads((folder / "gate.json").read_text()) == {}


def test_a_model_that_learnt_nan_is_never_packaged(base, tuned, tmp_path):
    weights = load_file(tuned.folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("nan")
    with staged(tmp_path / "broken", base={"identity": base.identity}, method="lora") as staging:
        (staging / "adapter_config.json").write_bytes((tuned.folder / "adapter_config.json").read_bytes())
        save_file(weights, staging / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="holds NaN or an infinity"):
        make(tmp_path / "package", base, ModelDirectory(tmp_path / "broken"))
    assert not (tmp_path / "package").exists()


def test_the_adapter_of_another_base_is_refused(base, tmp_path):
    with staged(tmp_path / "foreign", base={"identity": "other@0"}, method="lora") as staging:
        (staging / "adapter_config.json").write_text("{}")
    for kind in ("merged", "adapter"):
        with pytest.raises(UserError, match="was trained on other@0"):
            make(tmp_path / "package", base, ModelDirectory(tmp_path / "foreign"), kind=kind)


def test_a_base_without_a_usable_chat_template_is_refused_before_any_work(base, tuned, tmp_path):
    for template, reason in ((None, "writes nothing"), ("{{ messages[0].__class__ }}", "breaks out of the sandbox")):
        folder = tmp_path / str(template is None)
        folder.mkdir()
        for path in base.folder.iterdir():
            if path.name not in ("manifest.json", "chat_template.jinja"):
                (folder / path.name).write_bytes(path.read_bytes())
        if template:
            (folder / "chat_template.jinja").write_text(template)
        other = resolve_base(ModelParameters(base=str(folder)), folders_in(tmp_path))
        with pytest.raises(UserError, match=reason):
            make(tmp_path / "package", other, tuned)


def test_openssl_can_make_the_key_and_a_key_of_another_kind_is_the_users_mistake(base, tuned, tmp_path):
    private, public, curve = (tmp_path / name for name in ("private.pem", "public.pem", "curve.pem"))
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", curve], check=True)
    package = make(tmp_path / "package", base, tuned, signing_key=str(private))
    assert check_package(package.folder, key=public)
    for key, reason in ((curve, "is no Ed25519 key"), (tmp_path / "none.pem", "cannot be read"), (public, "cannot be read")):
        with pytest.raises(UserError, match=reason):
            make(tmp_path / "refused", base, tuned, signing_key=str(key))
        assert not (tmp_path / "refused").exists()


def test_openssl_alone_can_check_the_signature(base, tuned, tmp_path):
    """What is signed is the standard's encoding of the statement: no code of ours is needed to check it."""
    import base64

    private, public = key_pair(tmp_path)
    folder = make(tmp_path / "package", base, tuned, signing_key=str(private)).folder
    envelope = json.loads((folder / "signature.json").read_text())
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    (tmp_path / "signed").write_bytes(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", tmp_path / "signed"]
    done = subprocess.run([*command, "-sigfile", tmp_path / "signature"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = {subject["name"]: subject["digest"]["sha256"] for subject in json.loads(payload)["subject"]}
    files = read_manifest(folder)["files"]
    assert named == {name: entry["sha256"] for name, entry in files.items() if name != "signature.json"}


def test_the_password_of_a_key_is_in_the_environment(base, tuned, tmp_path, monkeypatch):
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret words", "-out", private]
    subprocess.run(command, check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-passin", "pass:secret words", "-pubout", "-out", public], check=True)
    with pytest.raises(UserError, match="cannot be read as a private key") as refused:
        make(tmp_path / "refused", base, tuned, signing_key=str(private))
    monkeypatch.setenv("LUTHIER_SIGNING_PASSWORD", "secret words")
    assert check_package(make(tmp_path / "package", base, tuned, signing_key=str(private)).folder, key=public)
    assert "secret words" not in str(refused.value)


# ---- nodes --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(home, tuned, tmp_path):
    folders = folders_in(home).model_copy(update={"work": str(tmp_path)})
    parameters = DeploymentParameters(precision="fp32", parity=Parity(examples=3, tolerance=1e-4))
    return {
        "tuned": tuned,
        "max_new_tokens": 8,
        "model": ModelParameters(base="tiny:llama"),
        "parameters": parameters,
        "folders": folders,
    }


def test_the_node_packages_once_and_makes_anew_what_has_changed(arguments):
    evidence = {name: EVIDENCE[name] for name in ("evaluation", "gate", "data_report", "lineage")}
    made = {"prompt_settings": PROMPT.model_dump(), "answer_schema": {}, **evidence}
    first = package_model(**arguments, **made)
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert package_model(**arguments, **made) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before
    other = package_model(**arguments, **{**made, "gate": {"decision": "pass"}})
    assert other.folder != first.folder
    (first.folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no safetensors"):
        package_model(**arguments, **made)


def test_the_parity_node_compares_test_conversations_that_became_examples(arguments, base, tuned, tmp_path):
    import pyarrow as pa

    from luthier.shards import write_shards

    rows = [
        {
            "key": f"{number:02}",
            "id": f"{number:02}",
            "cluster": f"{number:02}",
            "split": "test" if number % 2 else "train",
            "messages": [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}],
        }
        for number in range(10)
    ]
    long = [{"role": "user", "content": "x" * 100_000}] * 2
    rows.append({"key": "00", "id": "too long", "cluster": "00", "split": "test", "messages": long})
    records = write_shards(pa.Table.from_pylist(rows), tmp_path / "records")
    examples = write_shards(pa.table({"id": [f"{number:02}" for number in range(10)]}), tmp_path / "examples")
    package = make(tmp_path / "package", base, tuned)
    figures = check_parity(package=package, records=records, examples=examples, precision="fp32", **arguments)
    assert (figures["conversations"], figures["equal_texts"], figures["near_ties"]) == (3, 3, 0)
    assert figures["largest_difference"] == 0
    wrong = make(tmp_path / "wrong", base, random_adapter(tmp_path / "wrong-tuned", base, seed=1))
    with pytest.raises(UserError, match="is not the evaluated one"):
        check_parity(package=wrong, records=records, examples=examples, precision="fp32", **arguments)
    nothing = write_shards(pa.Table.from_pylist(rows[:1]), tmp_path / "nothing")
    with pytest.raises(UserError, match="no test conversation"):
        check_parity(package=package, records=nothing, examples=examples, precision="fp32", **arguments)
