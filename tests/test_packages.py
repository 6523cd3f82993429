"""A package that Luthier made is accepted; whatever was done to it since is refused, with the reason."""

import base64
import json
import os
import re
import shutil
import struct
import subprocess
import sys

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from luthier import packages
from luthier.artefacts import verify
from luthier.errors import UserError
from luthier.models import load_tokenizer, load_tuned
from luthier.packages import PackagedModel, check_package, load_package
from luthier.packages.templates import template_problem
from luthier.text.chat import encode_prompt
from luthier.text.prepare import ScrubSettings, conversation
from tests.pipelines.deployment.tiny_packages import MAX_NEW_TOKENS, PROMPT, key_pair, make, random_adapter, reseal, tiny_base

TEXTS = ["where is my parcel", "the kettle leaks", "x" * 60, "Ü?"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tiny model gains nothing from threads, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def base(home):
    return tiny_base(home)


@pytest.fixture(scope="module")
def tuned(home, base):
    return random_adapter(home / "tuned", base)


@pytest.fixture(scope="module")
def keys(home):
    return key_pair(home / "keys")


@pytest.fixture(scope="module")
def merged(home, base, tuned):
    return make(home / "merged", base, tuned)


@pytest.fixture(scope="module")
def signed(home, base, tuned, keys):
    return make(home / "signed", base, tuned, signing_key=str(keys[0]))


@pytest.fixture(scope="module")
def adapter(home, base, tuned):
    return make(home / "adapter", base, tuned, kind="adapter")


@pytest.fixture
def copy(merged, tmp_path):
    return shutil.copytree(merged.folder, tmp_path / "package")


def refusal(folder, **given):
    """Return why a folder is refused."""
    with pytest.raises(UserError) as refused:
        check_package(folder, **given)
    return str(refused.value)


# ---- what is accepted ---------------------------------------------------------------------------------------------------------


def test_a_package_is_accepted_with_and_without_its_root_hash(merged, adapter, signed, keys):
    for package in (merged, adapter, signed):
        assert check_package(package.folder) == verify(package.folder)
        assert check_package(package.folder, expected=package.sha256)["sha256"] == package.sha256
    assert check_package(signed.folder, key=keys[1])


def test_times_and_rights_are_no_content(copy):
    for path in copy.iterdir():
        path.chmod(0o777)
        os.utime(path, (0, 0))
    assert check_package(copy)


def test_checking_what_the_registry_knows_needs_neither_torch_nor_transformers(merged):
    code = (
        "import sys\nfrom pathlib import Path\nfrom luthier.packages import check_package\n"
        "check_package(Path(sys.argv[1]), sys.argv[2])\n"
        "print(sorted({'torch', 'transformers', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, merged.folder, merged.sha256], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# ---- tampering ----------------------------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=150)
def test_any_flipped_bit_is_refused(merged, tmp_path_factory, data):
    folder = shutil.copytree(merged.folder, tmp_path_factory.mktemp("flip") / "package")
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    path = folder / name
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert name in refusal(folder) or "manifest.json" in refusal(folder)
    if name != "manifest.json":
        reseal(folder)
        assert f"not {merged.sha256}" in refusal(folder, expected=merged.sha256)
    shutil.rmtree(folder)


def edit_json(name, change):
    def tamper(folder):
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return tamper


def edit_text(name, change):
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


def edit_weights(change):
    """Change tensors as a library would write them: the file stays whole and well formed."""

    def tamper(folder):
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return tamper


def edit_header(change):
    """Change the header alone and leave the numbers where they are."""

    def tamper(folder):
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = change(json.loads(data[8 : 8 + length]))
        text = (header if isinstance(header, str) else json.dumps(header)).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return tamper


def edit_bytes(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def add(name, content=b"x"):
    return lambda folder: (folder / name).write_bytes(content)


def link_file(folder):
    (folder / "sbom.json").rename(folder.parent / "elsewhere.json")
    (folder / "sbom.json").symlink_to(folder.parent / "elsewhere.json")


def link_folder(folder):
    (folder.parent / "elsewhere").mkdir()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(folder.parent / "elsewhere", target_is_directory=True)


def make_fifo(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def poison(value):
    def change(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        return tensors

    return edit_weights(change)


def first_of(header):
    return next(name for name in sorted(header) if name != "__metadata__")


def overlap(header):
    names = [name for name in header if name != "__metadata__" and header[name]["shape"] == [48]]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    return header


def out_of_range(header):
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    begin, end = header[last]["data_offsets"]
    header[last] |= {"data_offsets": [begin, end + 4096], "shape": [(end + 4096 - begin) // 4]}
    return header


def drop(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def transposed(tensors):
    name = "model.layers.0.mlp.up_proj.weight"
    return tensors | {name: tensors[name].T.contiguous()}


def as_half(tensors):
    return {name: tensor.half() for name, tensor in tensors.items()}


GATE = "model.layers.0.mlp.gate_proj.weight"
DUNDER = "{{ messages[0].__class__.__mro__[1].__subclasses__() }}"
# Each line: what is done, how, and the reason that must be told even when the manifest was made to agree.
TAMPERING = {
    "an extra script": (add("modeling.py"), r"modeling\.py: a package holds no code"),
    "a pickle .bin": (add("pytorch_model.bin"), r"pytorch_model\.bin: weights are safetensors only"),
    "a pickle .pt": (add("optimizer.pt"), r"optimizer\.pt: weights are safetensors only"),
    "a pickle .pkl": (add("python_model.pkl"), r"python_model\.pkl: weights are safetensors only"),
    "a file of no kind known": (add("notes.txt"), r"notes\.txt: no file of a package"),
    "a name that moves the cursor": (add("\x1b[2Jmodel.txt"), r"\\x1b\[2Jmodel\.txt: no file of a package"),
    "names that differ in case": (add("CONFIG.json"), r"differs from .* in case only"),
    "a linked file": (link_file, r"sbom\.json: is a link to"),
    "a linked folder": (link_folder, r"tokenizer\.json: is a link to"),
    "a folder": (lambda folder: (folder / "code").mkdir(), r"code: is a folder|code: no file of a package"),
    "a folder in a file's place": (
        lambda folder: ((folder / "sbom.json").unlink(), (folder / "sbom.json").mkdir()),
        r"sbom\.json: is a folder",
    ),
    "a pipe": (make_fifo, r"model\.safetensors: is no regular file"),
    "a second name": (lambda folder: os.link(folder / "gate.json", folder.parent / "gate"), r"gate\.json: has 2 names"),
    "an empty weights file": (edit_bytes("model.safetensors", lambda _: b""), r"no safetensors"),
    "a truncated header": (edit_bytes("model.safetensors", lambda data: data[:100]), r"no safetensors"),
    "truncated weights": (edit_bytes("model.safetensors", lambda data: data[:-4]), r"4 bytes|follow the header"),
    "bytes behind the weights": (edit_bytes("model.safetensors", lambda data: data + b"#!/bin/sh"), r"follow the header"),
    "an absurd header length": (
        edit_bytes("model.safetensors", lambda data: struct.pack("<Q", 2**62) + data[8:]),
        r"its header would have 4,611,686,018,427,387,904 bytes",
    ),
    "a header that is no JSON": (edit_header(lambda _: "{'a': 1}"), r"model\.safetensors: no safetensors"),
    "a header nested too deeply": (edit_header(lambda _: "[" * 200_000), r"model\.safetensors: no safetensors"),
    "a tensor twice in the header": (
        edit_header(lambda header: json.dumps(header)[:-1] + ', "x": 1, "x": 2}'),
        r"the key 'x' is there twice",
    ),
    "overlapping tensors": (edit_header(overlap), r"where the tensor before it ends"),
    "a tensor beyond the end": (edit_header(out_of_range), r"bytes, but .* follow the header"),
    "negative offsets": (
        edit_header(lambda header: header | {first_of(header): {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
        r"offsets that are no sizes",
    ),
    "a shape of another size": (
        edit_header(lambda header: header | {first_of(header): header[first_of(header)] | {"shape": [7]}}),
        r"but its shape \[7\] takes 28",
    ),
    "numbers of another kind in the header": (
        edit_header(lambda header: header | {first_of(header): header[first_of(header)] | {"dtype": "I32"}}),
        r"is in 'I32'",
    ),
    "another dtype": (edit_weights(as_half), r"stored as float16, but package\.json says float32"),
    "another shape": (
        edit_weights(transposed),
        r"up_proj\.weight has the shape \(48, 96\), but config\.json asks for \(96, 48\)",
    ),
    "a missing tensor": (edit_weights(drop(GATE)), r"gate_proj\.weight is missing"),
    "a tensor too many": (edit_weights(lambda tensors: tensors | {"extra": torch.zeros(2)}), r"extra belongs to no layer"),
    "NaN": (poison(float("nan")), r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or an infinity"),
    "an infinity": (poison(-float("inf")), r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or an infinity"),
    "another chat template": (
        edit_text("chat_template.jinja", lambda text: text.replace("assistant", "admin")),
        r"chat_template\.jinja: is not the template that the model was trained with",
    ),
    "a chat template out of the sandbox": (
        edit_text("chat_template.jinja", lambda text: text + DUNDER),
        r"breaks out of the sandbox",
    ),
    "a second chat template": (
        edit_json("tokenizer_config.json", lambda value: value.update(chat_template="{{ messages }}")),
        r"tokenizer_config\.json: holds a second chat template",
    ),
    "a model's own code": (
        edit_json("config.json", lambda value: value.update(auto_map={"AutoModelForCausalLM": "evil--modeling.Evil"})),
        r"config\.json: auto_map is set",
    ),
    "a tokenizer's own code": (
        edit_json("tokenizer_config.json", lambda value: value.update(auto_map={"AutoTokenizer": ["tok.Evil", None]})),
        r"tokenizer_config\.json: auto_map is set",
    ),
    "trust_remote_code, deep": (
        edit_json("config.json", lambda value: value.update(text_config={"trust_remote_code": True})),
        r"config\.json: text_config\.trust_remote_code is set",
    ),
    "attention code from a hub": (
        edit_json("config.json", lambda value: value.update(attn_implementation="kernels-evil/attention")),
        r"config\.json: attn_implementation is set",
    ),
    "an unknown architecture": (
        edit_json("config.json", lambda value: value.update(model_type="evil")),
        r"no model that transformers knows",
    ),
    "absurdly many layers": (
        edit_json("config.json", lambda value: value.update(num_hidden_layers=10**9)),
        r"num_hidden_layers is 1,000,000,000, but",
    ),
    "fewer tokens than the tokenizer's": (
        lambda folder: (
            edit_json("config.json", lambda value: value.update(vocab_size=100))(folder),
            edit_weights(
                lambda tensors: tensors | {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:100].clone()}
            )(folder),
        ),
        r"has a token 258, but the model knows 100",
    ),
    "huge JSON": (
        edit_text("lineage.json", lambda _: json.dumps({"a": "x" * 5_000_000})),
        r"lineage\.json: has 5,000,.* bytes, more than",
    ),
    "JSON nested too deeply": (
        edit_text("gate.json", lambda _: "[" * 100_000 + "]" * 100_000),
        r"gate\.json: cannot be read: it is nested",
    ),
    "a key twice": (
        edit_text("config.json", lambda text: '{"model_type": "llama",' + text[1:]),
        r"the key 'model_type' is there twice",
    ),
    "text that is none": (edit_bytes("model_card.md", lambda data: data + b"\xff"), r"model_card\.md: cannot be read"),
    "another code for MLflow": (
        edit_text("MLmodel", lambda text: text.replace("luthier.packages", "mlflow.pyfunc.model")),
        r"MLmodel: is not ours",
    ),
    "more code for MLflow": (edit_text("MLmodel", lambda text: text + "code: ../evil\n"), r"MLmodel: is not ours"),
    "prompt settings of no kind known": (
        edit_json("prompt_settings.json", lambda value: value.update(evil="x")),
        r"prompt_settings\.json: Extra inputs are not permitted",
    ),
    "an adapter in a merged package": (
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors"),
        r"adapter_model\.safetensors: belongs to no merged model",
    ),
    "weights in two forms": (
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors"),
        r"either model\.safetensors alone, or shards",
    ),
    "a package of another kind": (edit_json("package.json", lambda value: value.update(kind="code")), r"of no format and kind"),
    "a card that is gone": (lambda folder: (folder / "model_card.md").unlink(), r"model_card\.md: is missing"),
    "weights that are gone": (lambda folder: (folder / "model.safetensors").unlink(), r"weights: there are none"),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_refused_for_its_reason_even_if_the_manifest_agrees(copy, merged, what):
    tamper, reason = TAMPERING[what]
    tamper(copy)
    assert refusal(copy)
    reseal(copy)
    assert re.search(reason, refusal(copy)), refusal(copy)
    assert refusal(copy, expected=merged.sha256)


def in_manifest(change):
    return edit_json("manifest.json", change)


def move_entry(new):
    return in_manifest(lambda manifest: manifest["files"].update({new: manifest["files"].pop("answer_schema.json")}))


MANIFESTS = {
    "a path upwards": (move_entry("../answer_schema.json"), r"'\.\./answer_schema\.json' would leave the folder"),
    "a path of Windows's": (move_entry("..\\answer_schema.json"), r"would leave the folder"),
    "an absolute path": (move_entry("/etc/passwd"), r"'/etc/passwd' would leave the folder"),
    "a file unnamed": (in_manifest(lambda manifest: manifest["files"].pop("gate.json")), r"does not name gate\.json"),
    "a file that is not there": (
        in_manifest(lambda manifest: manifest["files"].update({"x.json": {"bytes": 1, "sha256": "0" * 64}})),
        r"names 'x\.json', which is missing",
    ),
    "another root hash": (in_manifest(lambda manifest: manifest.update(sha256="0" * 64)), r"its own root hash differs"),
    "facts that no hash covers": (in_manifest(lambda manifest: manifest.update(gate="pass")), r"holds something else"),
    "an entry without a hash": (
        in_manifest(lambda manifest: manifest["files"].update({"gate.json": {"bytes": 3}})),
        r"'gate\.json' has no size and hash",
    ),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json: is missing"),
    "a manifest of another kind": (add("manifest.json", b"[]"), r"manifest\.json: is missing, or holds something else"),
    "a manifest that is no JSON": (add("manifest.json", b"{"), r"manifest\.json: cannot be read"),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_does_not_fit_is_refused_for_its_reason(copy, what):
    tamper, reason = MANIFESTS[what]
    tamper(copy)
    assert re.search(reason, refusal(copy)), refusal(copy)


def test_all_that_is_wrong_is_told_at_once(copy):
    for what in ("an extra script", "NaN", "another chat template", "a model's own code"):
        TAMPERING[what][0](copy)
    told = refusal(copy)
    for what in ("an extra script", "NaN", "another chat template", "a model's own code"):
        assert re.search(TAMPERING[what][1], told)
    assert "model.safetensors has changed" in told


def test_weights_exchanged_with_everything_that_vouches_for_them_are_known_by_the_root_hash_alone(copy, merged):
    """What only an outside fact can show is shown by it; a check without it could not."""
    edit_weights(lambda tensors: {name: tensor * 1.01 for name, tensor in tensors.items()})(copy)
    reseal(copy)
    assert check_package(copy)
    assert f"not {merged.sha256}: this is another package" in refusal(copy, expected=merged.sha256)


def test_what_is_no_folder_is_no_package(tmp_path):
    assert "there is no such folder" in refusal(tmp_path / "nothing")
    assert "is missing" in refusal(tmp_path)


@given(position=st.integers(0, 54_000), kind=st.sampled_from(["bfloat16", "float16", "float32"]))
@settings(max_examples=25)
def test_a_single_nan_is_found_wherever_it_stands_in_every_precision(precisions, tmp_path_factory, position, kind):
    folder = shutil.copytree(precisions[kind].folder, tmp_path_factory.mktemp("nan") / "package")

    def poison_one(tensors):
        name, tensor = list(tensors.items())[position % len(tensors)]
        tensor.view(-1)[position % tensor.numel()] = float("nan")
        return tensors

    edit_weights(poison_one)(folder)
    reseal(folder)
    assert "holds NaN" in refusal(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def precisions(home, base, tuned):
    named = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    return {name: make(home / name, base, tuned, precision=short) for name, short in named.items()}


def test_numbers_that_are_only_large_are_accepted(precisions, tmp_path):
    for name, package in precisions.items():
        folder = shutil.copytree(package.folder, tmp_path / name)
        largest = torch.finfo(getattr(torch, name)).max

        def enlarge(tensors, largest=largest):
            tensors["model.norm.weight"][:2] = torch.tensor([largest, -largest])
            return tensors

        edit_weights(enlarge)(folder)
        reseal(folder)
        assert check_package(folder)


# ---- shards -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(copy):
    """Return a package whose weights are in two files with an index."""
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    table = {}
    for number, names in enumerate([sorted(tensors)[::2], sorted(tensors)[1::2]], start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, copy / file, metadata={"format": "pt"})
        table |= dict.fromkeys(names, file)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    reseal(copy)
    return copy


def test_shards_are_one_model(shards, merged):
    assert check_package(shards)
    whole, pieces = (load_package(folder, torch.float32)[0] for folder in (merged.folder, shards))
    ids = torch.arange(3, 30)[None]
    with torch.inference_mode():
        assert torch.equal(whole(ids).logits, pieces(ids).logits)


@pytest.mark.parametrize("to", ["../outside.safetensors", "model-00001-of-00002.safetensors", "/etc/passwd"])
def test_an_index_that_points_elsewhere_is_refused(shards, to):
    index = "model.safetensors.index.json"
    name = sorted(load_file(shards / "model-00002-of-00002.safetensors"))[0]
    edit_json(index, lambda value: value["weight_map"].update({name: to}))(shards)
    reseal(shards)
    assert re.search(rf"{index}: does not say which file holds which tensor: {name}", refusal(shards))


# ---- adapters -----------------------------------------------------------------------------------------------------------------


def of_adapter(change):
    def tamper(folder):
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return tamper


def first_half_gone(tensors):
    return dict(list(tensors.items())[1:])


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (
            edit_json("adapter_config.json", lambda value: value.update(auto_mapping={"parent_library": "evil"})),
            r"auto_mapping is set",
        ),
        (edit_json("adapter_config.json", lambda value: value.update(peft_type="XLORA")), r"is none of a LoRA adapter"),
        (edit_json("adapter_config.json", lambda value: value.update(r=8)), r"not the two halves of an adapter of rank 8"),
        (of_adapter(first_half_gone), r"not the two halves of an adapter"),
        (of_adapter(lambda tensors: tensors | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}), r"lm_head"),
        (add("config.json", b"{}"), r"config\.json: belongs to no adapter model"),
    ],
)
def test_a_changed_adapter_is_refused(adapter, tmp_path, tamper, reason):
    folder = shutil.copytree(adapter.folder, tmp_path / "package")
    tamper(folder)
    reseal(folder)
    assert re.search(reason, refusal(folder)), refusal(folder)


def test_an_adapter_loads_on_its_own_base_alone(adapter, merged, base, home, tmp_path):
    with pytest.raises(UserError, match=r"is an adapter for tiny:llama@.*; none was given"):
        load_package(adapter.folder, torch.float32)
    other = type(base)("other", base.folder, "other@0")
    with pytest.raises(UserError, match=r"other@0 was given"):
        load_package(adapter.folder, torch.float32, base=other)
    one, two = load_package(merged.folder, torch.float32), load_package(adapter.folder, torch.float32, base=base)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(one[0](ids).logits, two[0](ids).logits, rtol=1e-4, atol=1e-4)
    assert two[0].generation_config.max_new_tokens == MAX_NEW_TOKENS


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_for_layers_that_the_base_has_not_is_refused_when_it_is_loaded(adapter, base, tmp_path):
    folder = shutil.copytree(adapter.folder, tmp_path / "package")
    of_adapter(lambda tensors: {name.replace("layers.1.", "layers.7."): value for name, value in tensors.items()})(folder)
    reseal(folder)
    assert check_package(folder)
    with pytest.raises(UserError, match=r"does not fit tiny:llama"):
        load_package(folder, torch.float32, base=base)


# ---- signatures ---------------------------------------------------------------------------------------------------------------


def test_a_key_is_required_and_only_the_right_one_will_do(copy, signed, keys, tmp_path):
    assert "the package is not signed, and a key is required" in refusal(copy, key=keys[1])
    _, stranger = key_pair(tmp_path / "stranger")
    assert "was not made with the key of" in refusal(signed.folder, key=stranger)


def test_a_signature_is_for_these_files_and_no_others(signed, keys, tmp_path):
    folder = shutil.copytree(signed.folder, tmp_path / "package")
    edit_weights(lambda tensors: {name: tensor * 1.01 for name, tensor in tensors.items()})(folder)
    reseal(folder)
    assert check_package(folder)
    assert "vouches for other files than these" in refusal(folder, key=keys[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.pop("signatures"), "is no signature"),
        (lambda value: value.update(signatures=[]), "is no signature"),
        (lambda value: value.update(payload="!"), "is no signature"),
        (lambda value: value["signatures"][0].update(sig=base64.b64encode(b"x" * 64).decode()), "was not made with the key"),
        (lambda value: value.update(payload=base64.b64encode(b"{}").decode()), "was not made with the key"),
    ],
)
def test_a_broken_signature_is_refused(signed, keys, tmp_path, change, reason):
    folder = shutil.copytree(signed.folder, tmp_path / "package")
    edit_json("signature.json", change)(folder)
    reseal(folder)
    assert f"signature.json: {reason}" in refusal(folder, key=keys[1])


def test_a_key_that_is_none_is_the_users_mistake(signed, tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    (tmp_path / "text.pem").write_text("no key")
    other = generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "other.pem").write_bytes(other)
    for name, reason in (
        ("text.pem", "holds no public key"),
        ("other.pem", "no Ed25519 key"),
        ("none.pem", "holds no public key"),
    ):
        assert reason in refusal(signed.folder, key=tmp_path / name)


# ---- chat templates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (DUNDER, "it names '__subclasses__'"),
        ("{{ messages['__class__'] }}", "it names '__class__'"),
        ("{{ messages | attr('__class__') }}", "it names '__class__'"),
        ("{{ messages | attr('__cl' ~ 'ass__') }}", "writes nothing"),
        ("{{ messages[0]._secret }}", "it names '_secret'"),
        ("{% include '/etc/passwd' %}", "it reads another file"),
        ("{% extends 'x' %}", "it reads another file"),
        ("{% import 'x' as y %}", "it reads another file"),
        ("{{ 'a' * 10 ** 10 }}", "power"),
        ("{{ messages.append(1) }}", "breaks out of the sandbox"),
        ("{% for message in messages %}", "cannot write a conversation"),
        ("{{ nothing.at.all }}", "cannot write a conversation"),
        ("{{ raise_exception('no') }}", "cannot write a conversation: no"),
        ("", "writes nothing"),
    ],
)
def test_a_template_that_reaches_for_more_or_writes_nothing_is_refused(template, reason):
    told = template_problem(template)
    assert told
    assert re.search(reason, told), told


def test_a_hidden_reach_is_refused_though_no_conversation_comes_to_it():
    template = "{% if messages | length > 99 %}" + DUNDER + "{% endif %}{{ messages[0]['content'] }}"
    assert "breaks out of the sandbox" in template_problem(template)


GOOD_TEMPLATES = {
    "generation marks": (
        "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' }}"
        "{%- if message.role == 'assistant' -%}{%- generation -%}{{ message.content }}{%- endgeneration -%}"
        "{%- else -%}{{ message.content }}{%- endif -%}{{ '<|im_end|>' }}{%- endfor -%}"
    ),
    "loop controls, tools, dates": (
        "{{ bos_token }}{% set ns = namespace(x=0) %}{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
        "{% set ns.x = ns.x + 1 %}{{ m['role'] ~ ': ' ~ (m.content | trim) }}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if tools is defined and tools %}{{ tools | tojson }}{% endif %}{{ strftime_now('%d') }}"
    ),
}


@pytest.mark.parametrize("name", GOOD_TEMPLATES)
def test_templates_as_models_have_them_are_accepted(name):
    assert template_problem(GOOD_TEMPLATES[name]) is None


# ---- use ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(merged):
    return PackagedModel(*load_package(merged.folder, torch.float32))


def test_a_package_loads_as_the_model_that_it_was_made_of(loaded, base, tuned):
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, load_tuned(base, tuned, torch.float32).eval()(ids).logits)
    assert loaded.settings == PROMPT
    assert loaded.tokenizer.chat_template == load_tokenizer(base).chat_template


def test_what_is_refused_is_not_loaded(copy):
    TAMPERING["an extra script"][0](copy)
    with pytest.raises(UserError, match="holds no code"):
        load_package(copy, torch.float32)


def test_messages_are_asked_as_in_training(loaded):
    for text in TEXTS:
        messages = conversation({"body": text, "answer": "x"}, PROMPT)[:-1]
        prompt = encode_prompt(loaded.tokenizer, messages)
        output = loaded.model.generate(torch.tensor([prompt]), max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        expected = loaded.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip()
        # with the system prompt or without, the same conversation is asked
        assert loaded.answer(messages) == loaded.answer(messages[1:]) == expected
    assert len({loaded.answer([{"role": "user", "content": text}]) for text in TEXTS}) > 1


def test_a_table_of_prompts_or_of_openai_messages_is_answered_row_by_row(loaded):
    alone = [loaded.answer([{"role": "user", "content": text}]) for text in TEXTS]
    assert loaded.predict(pd.DataFrame({"prompt": TEXTS})) == alone
    turns = [[{"role": "user", "content": text, "name": None}] for text in TEXTS]
    assert loaded.predict(pd.DataFrame({"messages": turns})) == alone
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "user", "content": "b"},
    ]
    assert len(loaded.predict(pd.DataFrame({"messages": [asked]}))) == 1
    with pytest.raises(UserError, match="content must be text, not list"):
        loaded.predict(pd.DataFrame({"messages": [[{"role": "user", "content": [{"type": "text", "text": "a"}]}]]}))
    with pytest.raises(UserError, match="give a column `messages` or `prompt`, not text"):
        loaded.predict(pd.DataFrame({"text": TEXTS}))


def test_personal_data_are_taken_out_as_in_training(home, base, tuned):
    package = make(home / "scrubbed", base, tuned, prompt=PROMPT.model_copy(update={"scrub": ScrubSettings()}))
    model = PackagedModel(*load_package(package.folder, torch.float32))
    one, other = (model.answer([{"role": "user", "content": f"write to {name}@example.org"}]) for name in ("ann", "bob"))
    placeholder = conversation({"body": "write to ann@example.org", "answer": "x"}, model.settings)[1]["content"]
    assert "ann@" not in placeholder
    assert one == model.answer([{"role": "user", "content": placeholder}]) != other


def test_a_package_is_a_model_of_mlflows_registry_without_a_pickle(home, base, tuned, tmp_path):
    import mlflow
    from mlflow import MlflowClient

    before = mlflow.get_tracking_uri()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    merged = make(home / "registered", base, tuned)
    client.create_registered_model("luthier")
    version = client.create_model_version("luthier", source=str(merged.folder))
    client.set_registered_model_alias("luthier", "champion", version.version)
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/luthier@champion")
        answers = model.predict(pd.DataFrame({"prompt": TEXTS}))
    finally:
        mlflow.set_tracking_uri(before)
    # in the precision of this machine, by our own loader
    own = packages._load_pyfunc(str(merged.folder))
    assert answers == own.predict(pd.DataFrame({"prompt": TEXTS}))
    # MLflow leaves a note in a local store: it is none of the package's files, and the root hash stays
    assert (merged.folder / "registered_model_meta").is_file()
    assert check_package(merged.folder)["sha256"] == merged.sha256
    (merged.folder / "registered_model_meta").write_text("model_name: !!python/object/apply:os.system [id]\nmodel_version: 1\n")
    assert "no note of MLflow's" in refusal(merged.folder)
