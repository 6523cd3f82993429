"""Packages of the tiny model for the tests: a random adapter, merged or not, with or without a signature."""

from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from peft import LoraConfig, get_peft_model

from luthier.artefacts import staged, write_manifest
from luthier.configuration import FolderParameters, ModelParameters
from luthier.models import Base, ModelDirectory, load_model, resolve_base
from luthier.pipelines.deployment.package import Ingredients, make_package
from luthier.pipelines.deployment.parameters import DeploymentParameters
from luthier.text.prepare import PromptSettings

PROMPT = PromptSettings(system="Be brief.", user="{{ body }}", assistant="{{ answer }}")
MAX_NEW_TOKENS = 12
EVIDENCE = {
    "evaluation": {"examples": 7, "models": {"base": {"exact_match": {"value": 0.25, "low": 0.1, "high": 0.5}}}},
    "gate": {
        "decision": "undecided",
        "candidate": "tuned",
        "champion": "luthier 3",
        "examples": 7,
        "alpha": 0.05,
        "rules": [
            {"rule": "better than champion", "decision": "undecided", "value": 0.5, "low": None, "high": None, "limit": 0.0}
        ],
    },
    "data_report": {"rows_read": 1271, "splits": {"train": 946}, "steps": {"clean_records": {"in": 12, "out": 11}}},
    "lineage": {"commit": "0123abc", "data": {"support_messages": "ab" * 32}},
}


def folders_in(folder: Path) -> FolderParameters:
    """Return the folders of a project in `folder`."""
    return FolderParameters(root=str(folder), base_models=str(folder / "base"), shards="", work=str(folder / "work"))


def tiny_base(folder: Path) -> Base:
    """Build the tiny model."""
    return resolve_base(ModelParameters(base="tiny:llama"), folders_in(folder))


def random_adapter(folder: Path, base: Base, seed: int = 0, size: float = 0.3) -> ModelDirectory:
    """Save an adapter as training does; large enough that greedy answers differ from prompt to prompt."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(load_model(base, torch.float32), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=size)
    with staged(folder, base={"name": base.name, "identity": base.identity}, method="lora") as staging:
        model.save_pretrained(staging)
    return ModelDirectory(folder)


def make(folder: Path, base: Base, tuned: ModelDirectory, prompt: PromptSettings = PROMPT, **parameters) -> ModelDirectory:
    """Package the adapter with all evidence."""
    made_of = Ingredients(base, tuned, prompt, MAX_NEW_TOKENS, {"type": "object"}, **EVIDENCE)
    return make_package(folder, made_of, DeploymentParameters(**{"precision": "fp32", **parameters}))


def reseal(folder: Path) -> None:
    """Do what an attacker does who can write the folder: make the manifest agree with the files."""
    write_manifest(folder, {})


def key_pair(folder: Path) -> tuple[Path, Path]:
    """Write a private and a public key."""
    folder.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public
