"""An exported folder is a plain Hugging Face model: transformers alone answers from it as the package does."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from sharp import THINKS, with_template

from luthier.artefacts import staged, verify
from luthier.configuration import ModelParameters
from luthier.errors import UserError
from luthier.models import load_tokenizer, load_tuned, resolve_base
from luthier.packages import PackagedModel, load_package
from luthier.pipelines.deployment.export import export
from luthier.text.prepare import conversation
from tests.pipelines.deployment.tiny_packages import PROMPT, folders_in, make, random_adapter

TEXTS = ["where is my parcel", "the kettle leaks", "Ü?"]
PLAIN = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
found = []
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    answers = []
    for text in json.loads(sys.argv[1]):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**prompt)
        answers.append(tokenizer.decode(output[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True).strip())
    found.append([str(model.dtype), answers])
assert not [name for name in sys.modules if name.startswith("luthier")]
print(json.dumps(found))
"""


def plainly(*folders):
    """Let transformers alone answer, in a process of its own; returns the dtype and the answers of each folder."""
    done = subprocess.run([sys.executable, "-c", PLAIN, json.dumps(TEXTS), *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def answers_of(folder, dtype=torch.float32, base=None):
    model = PackagedModel(*load_package(folder, dtype, base=base))
    return [model.answer([{"role": "user", "content": text}]) for text in TEXTS]


def test_transformers_alone_answers_as_the_package_does_merged_or_adapter(base, tuned, tmp_path):
    merged, adapter = make(tmp_path / "merged", base, tuned), make(tmp_path / "adapter", base, tuned, kind="adapter")
    one, two = export(merged.folder, tmp_path / "one"), export(adapter.folder, tmp_path / "two", base=base)
    expected = answers_of(merged.folder)
    assert len(set(expected)) > 1
    assert answers_of(adapter.folder, base=base) == expected
    assert plainly(one.folder, two.folder) == [["torch.float32", expected]] * 2
    assert verify(one.folder)
    assert {path.name for path in one.folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "manifest.json",
    }


def test_an_adapter_needs_its_base(base, tuned, tmp_path):
    package = make(tmp_path / "package", base, tuned, kind="adapter")
    with pytest.raises(UserError, match="is an adapter for tiny:llama"):
        export(package.folder, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def logits(folder, dtype):
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)(torch.arange(3, 60)[None]).logits


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_named_precision_is_stored(base, tuned, tmp_path, precision):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    package = make(tmp_path / "package", base, tuned)
    exported = export(package.folder, tmp_path / "exported", precision)
    config = json.loads((exported.folder / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")
    model = load_tuned(base, tuned, torch.float32).eval()
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
        wanted = model(torch.arange(3, 60)[None]).logits
    assert torch.allclose(logits(exported.folder, torch.float32), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "rope", [{"rope_type": "default", "rope_theta": 50.0}, {"rope_type": "linear", "rope_theta": 70.0, "factor": 4.0}]
)
def test_rotary_positions_are_written_for_old_readers_and_new_ones(base, tmp_path, rope):
    """Without `rope_theta` beside the rest, a reader older than transformers 5 takes 10,000 and says nothing."""
    with staged(tmp_path / "model") as staging:
        for path in base.folder.iterdir():
            if path.name != "manifest.json":
                (staging / path.name).write_bytes(path.read_bytes())
        config = json.loads((staging / "config.json").read_text()) | {"rope_parameters": rope}
        (staging / "config.json").write_text(json.dumps(config))
    other = resolve_base(ModelParameters(base=str(tmp_path / "model")), folders_in(tmp_path))
    package = make(tmp_path / "package", other, random_adapter(tmp_path / "tuned", other))
    exported = export(package.folder, tmp_path / "exported")
    config = json.loads((exported.folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == rope["rope_theta"]
    assert config["rope_scaling"] == (None if rope["rope_type"] == "default" else {"rope_type": "linear", "factor": 4.0})
    expected = logits(exported.folder, torch.float32)
    # as an old reader has it: what transformers 5 calls `rope_parameters` is unknown to it
    del config["rope_parameters"]
    (exported.folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(logits(exported.folder, torch.float32), expected)
    del config["rope_theta"]
    (exported.folder / "config.json").write_text(json.dumps(config))
    assert not torch.allclose(logits(exported.folder, torch.float32), expected, atol=1e-3)


def test_the_tokenizer_names_a_class_that_every_version_of_transformers_has(base, tuned, tmp_path):
    exported = export(make(tmp_path / "package", base, tuned).folder, tmp_path / "exported")
    settings = json.loads((exported.folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "chat_template" not in settings
    assert (exported.folder / "chat_template.jinja").read_bytes() == (base.folder / "chat_template.jinja").read_bytes()


def test_nothing_is_exported_over_something_or_from_what_is_refused(base, tuned, tmp_path):
    package = make(tmp_path / "package", base, tuned)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError):
        export(package.folder, tmp_path / "there")
    (package.folder / "evil.py").write_text("")
    with pytest.raises(UserError, match="holds no code"):
        export(package.folder, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("template", [None, THINKS])
def test_the_same_conversation_is_asked_as_in_training(base, tuned, tmp_path, template):
    from transformers import AutoTokenizer

    from luthier.text.chat import encode_prompt

    if template:
        base = replace(with_template(base, tmp_path / "thinks", template), identity=base.identity)
    package = make(tmp_path / "package", base, tuned)
    exported = export(package.folder, tmp_path / "exported")
    messages = conversation({"body": TEXTS[0], "answer": "x"}, PROMPT)[:-1]
    plain = AutoTokenizer.from_pretrained(exported.folder).apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    for tokenizer in (load_package(package.folder, torch.float32)[1], load_tokenizer(base)):
        assert plain == encode_prompt(tokenizer, messages)
