"""What a model is made of and what it needs to run, as a CycloneDX 1.6 document (https://cyclonedx.org/docs/1.6/json/)."""

import importlib.metadata
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from luthier.artefacts import hash_of

Json = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A model as the bill names it."""

    name: str
    version: str
    weights: Mapping[str, str]
    """File name to sha256."""
    license: str | None
    """As its owner states it, None if nobody did."""


def bill_of_materials(model: Model, base: Model, data: Mapping[str, str]) -> Json:
    """Return the bill: the model, its base, the data sets it learnt from, and the Python packages that run it.

    It holds no time and its serial number is a hash of its content, so equal models have equal bills.

    Args:
        model: what is packaged.
        base: what it was tuned from.
        data: data set to sha256.
    """
    libraries, needs = _libraries("luthier")
    sets = [
        {"type": "data", "bom-ref": f"data:{name}", "name": name, "hashes": _hashes(digest)}
        for name, digest in sorted(data.items())
    ]
    made_from = [_model_component("base", base), *sets]
    learnt = {"ref": "model", "dependsOn": [*(entry["bom-ref"] for entry in made_from), _reference("luthier")]}
    bill = {
        "metadata": {"component": _model_component("model", model)},
        "components": [*made_from, *libraries],
        "dependencies": [learnt, *needs],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, hash_of(bill))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1, **bill}


def _model_component(reference: str, model: Model) -> Json:
    """Describe a model; one whose weights are one file has that file's hash, and each file has its own in any case."""
    files = [
        {"type": "file", "bom-ref": f"{reference}/{name}", "name": name, "hashes": _hashes(digest)}
        for name, digest in sorted(model.weights.items())
    ]
    return {
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": model.name,
        "version": model.version,
        **({"hashes": files[0]["hashes"]} if len(files) == 1 else {}),
        **({"licenses": [{"license": {"name": model.license}}]} if model.license else {}),
        **({"components": files} if files else {}),
    }


def _hashes(digest: str) -> list[Json]:
    return [{"alg": "SHA-256", "content": digest}]


def _reference(package: str) -> str:
    # "+" separates a local version, and means a space in a URL
    return f"pkg:pypi/{package}@{importlib.metadata.version(package)}".replace("+", "%2B")


@cache
def _libraries(root: str) -> tuple[list[Json], list[Json]]:
    """Return the installed packages that `root` needs, itself included, and who needs whom."""
    needs: dict[str, set[str]] = {}
    extras: dict[str, set[str]] = {}
    todo = [(root, {""})]
    while todo:
        package, asked = todo.pop()
        if package in needs and asked <= extras[package]:
            continue
        extras[package] = extras.get(package, set()) | asked
        wanted = [Requirement(line) for line in importlib.metadata.requires(package) or []]
        chosen = [need for need in wanted if _applies(need, extras[package]) and is_installed(need.name)]
        needs[package] = {str(canonicalize_name(need.name)) for need in chosen}
        todo += [(str(canonicalize_name(need.name)), {"", *need.extras}) for need in chosen]
    components = [
        {
            "type": "library",
            "bom-ref": _reference(package),
            "name": package,
            "version": importlib.metadata.version(package),
            "purl": _reference(package),
            **_licenses(package),
        }
        for package in sorted(needs)
    ]
    return components, [
        {"ref": _reference(package), "dependsOn": [_reference(need) for need in sorted(needs[package])]}
        for package in sorted(needs)
    ]


def _applies(need: Requirement, extras: set[str]) -> bool:
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)


def is_installed(package: str) -> bool:
    """Tell whether a package is there."""
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _licenses(package: str) -> Json:
    """Return the licence in CycloneDX's form: an SPDX expression where the package has one (PEP 639), else a name."""
    facts = importlib.metadata.metadata(package)
    if "License-Expression" in facts:
        return {"licenses": [{"expression": facts["License-Expression"]}]}
    name = license_of(package)
    return {"licenses": [{"license": {"name": name}}]} if name else {}


def license_of(package: str) -> str | None:
    """Return the licence that an installed package states, None if it states none.

    Some put the whole text of their licence where its name belongs; that is left out.
    """
    facts = importlib.metadata.metadata(package)
    stated = [facts[name] for name in ("License-Expression", "License") if name in facts]
    stated += [line.rpartition(" :: ")[2] for line in facts.get_all("Classifier") or [] if line.startswith("License ::")]
    return next((text for text in stated if text and "\n" not in text and len(text) < 80), None)
