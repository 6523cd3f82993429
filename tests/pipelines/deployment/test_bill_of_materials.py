"""The bill is a CycloneDX 1.6 document that names the base model, the data and every library, each with what is known of it."""

import importlib.metadata
import re
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.pipelines.deployment.bill_of_materials import Model, bill_of_materials, is_installed, license_of

MODEL = Model("Triage", "0123", {"model.safetensors": "a" * 64}, "Apache-2.0")
BASE = Model("tiny:llama", "4567", {"one.safetensors": "b" * 64, "two.safetensors": "c" * 64}, None)
# What the schema bom-1.6.schema.json requires and allows, of the parts that are used here.
TYPES = {"application", "framework", "library", "file", "machine-learning-model", "data"}
COMPONENT = {"type", "bom-ref", "name", "version", "hashes", "licenses", "purl", "components"}


def components_in(component):
    for inner in component.get("components", []):
        yield inner
        yield from components_in(inner)


def all_components(bill):
    return [bill["metadata"]["component"], *components_in(bill["metadata"]["component"]), *components_in(bill)]


def check(bill):
    """Hold a bill against the rules of CycloneDX 1.6."""
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", bill["serialNumber"])
    assert uuid.UUID(bill["serialNumber"])
    assert bill.keys() == {"bomFormat", "specVersion", "serialNumber", "version", "metadata", "components", "dependencies"}
    found = all_components(bill)
    for component in found:
        assert component.keys() <= COMPONENT
        assert component["type"] in TYPES
        assert component["name"]
        for digest in component.get("hashes", []):
            assert digest.keys() == {"alg", "content"}
            assert digest["alg"] == "SHA-256"
            assert re.fullmatch(r"[0-9a-f]{64}", digest["content"])
        licenses = component.get("licenses", [])
        assert len(licenses) <= 1
        for entry in licenses:
            assert entry.keys() in ({"expression"}, {"license"})
            assert entry.get("expression") or entry["license"].keys() == {"name"}
        if component["type"] == "library":
            assert re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[^\s+]+", component["purl"])
    references = [component["bom-ref"] for component in found]
    assert len(set(references)) == len(references)
    for entry in bill["dependencies"]:
        assert entry.keys() == {"ref", "dependsOn"}
        assert {entry["ref"], *entry["dependsOn"]} <= set(references)
        assert len(set(entry["dependsOn"])) == len(entry["dependsOn"])
    refs = [entry["ref"] for entry in bill["dependencies"]]
    assert len(set(refs)) == len(refs)


@pytest.fixture(scope="module")
def bill():
    return bill_of_materials(MODEL, BASE, {"support_messages": "d" * 64})


def test_it_is_a_cyclonedx_document(bill):
    check(bill)


def test_the_model_its_base_and_its_data_are_named_with_their_hashes(bill):
    subject = bill["metadata"]["component"]
    assert (subject["type"], subject["hashes"][0]["content"]) == ("machine-learning-model", "a" * 64)
    base, data = bill["components"][:2]
    assert (base["type"], base["name"], base["version"]) == ("machine-learning-model", "tiny:llama", "4567")
    assert {file["name"]: file["hashes"][0]["content"] for file in base["components"]} == dict(BASE.weights)
    assert (data["type"], data["name"], data["hashes"][0]["content"]) == ("data", "support_messages", "d" * 64)
    (made,) = [entry for entry in bill["dependencies"] if entry["ref"] == subject["bom-ref"]]
    assert {base["bom-ref"], data["bom-ref"]} <= set(made["dependsOn"])


def test_every_library_that_is_needed_is_there_in_its_version(bill):
    libraries = {entry["name"]: entry["version"] for entry in bill["components"] if entry["type"] == "library"}
    for name in ("luthier", "torch", "transformers", "safetensors", "numpy", "mlflow", "cryptography"):
        assert libraries[name] == importlib.metadata.version(name)
    # a dependency of a dependency, and one that only an extra asks for
    assert "huggingface-hub" in libraries
    assert "pytest" not in libraries


def test_each_library_needs_what_it_says(bill):
    needs = {entry["ref"].partition("@")[0]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert any(ref.startswith("pkg:pypi/safetensors@") for ref in needs["pkg:pypi/transformers"])
    assert any(ref.startswith("pkg:pypi/torch@") for ref in needs["pkg:pypi/luthier"])


def test_a_licence_is_a_name_never_a_whole_text():
    assert license_of("numpy")
    stated = [license_of(distribution.name) for distribution in importlib.metadata.distributions()]
    assert sum(name is not None for name in stated) > 0.9 * len(stated)
    assert all(name is None or (len(name) < 80 and "\n" not in name) for name in stated)
    assert not is_installed("no-such-package-anywhere")


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(weights=st.dictionaries(NAMES, DIGESTS, max_size=3), data=st.dictionaries(NAMES, DIGESTS, max_size=3))
@settings(max_examples=20)
def test_equal_content_is_an_equal_bill_and_other_content_has_another_number(weights, data):
    def make(weights):
        return bill_of_materials(Model("m", "1", weights, None), BASE, data)

    one = make(weights)
    check(one)
    assert make(dict(reversed(weights.items()))) == one
    assert make(weights | {"another": "0" * 64})["serialNumber"] != one["serialNumber"]
