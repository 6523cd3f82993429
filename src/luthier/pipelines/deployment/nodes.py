"""The steps of deployment: what the model came from, its package, and its version in the registry."""

import logging
from pathlib import Path
from typing import Any

from luthier.artefacts import hash_of, is_complete
from luthier.configuration import FolderParameters, ModelParameters
from luthier.errors import UserError
from luthier.models import ModelDirectory, resolve_base
from luthier.packages import check_package
from luthier.pipelines.deployment.package import Ingredients, make_package
from luthier.pipelines.deployment.parameters import DeploymentParameters
from luthier.records import held_out
from luthier.shards import Shards
from luthier.text.prepare import PromptSettings

logger = logging.getLogger(__name__)


# What a person asks first; the rest is in evaluation.json.
MAIN_FIGURES = ("field_accuracy", "exact_match", "validity", "nll_per_token")


def trace_lineage(
    tuned: ModelDirectory,
    examples: Shards,
    records: Shards,
    described: Shards,
    sources: list[dict[str, Any]],
    model: ModelParameters,
    folders: FolderParameters,
) -> dict[str, Any]:
    """Name all that the model came from: base, code, data sets and source files, each by its hash."""
    from luthier.lineage import commit, local_changes

    base, root = resolve_base(model, folders), Path(folders.root)
    return {
        "model": tuned.sha256,
        "base": {"name": base.name, "identity": base.identity},
        "commit": commit(root),
        "local_changes": hash_of(changes.encode()) if (changes := local_changes(root)) else None,
        "data": {"examples": examples.sha256, "split_records": records.sha256, "described_data": described.sha256},
        "sources": [{name: source[name] for name in ("source", "file", "sha256", "rows")} for source in sources],
    }


def package_model(
    tuned: ModelDirectory,
    prompt_settings: dict[str, Any],
    answer_schema: dict[str, Any],
    evaluation: dict[str, Any],
    gate: dict[str, Any],
    data_report: dict[str, Any],
    lineage: dict[str, Any],
    max_new_tokens: int,
    model: ModelParameters,
    parameters: DeploymentParameters,
    folders: FolderParameters,
) -> ModelDirectory:
    """Make the package of the tuned model, or find that this very package is there."""
    base = resolve_base(model, folders)
    facts = {"evaluation": evaluation, "gate": gate, "data_report": data_report, "lineage": lineage}
    decides = [tuned.sha256, base.identity, prompt_settings, answer_schema, facts, max_new_tokens, parameters.model_dump()]
    target = Path(folders.work) / "packages" / hash_of(decides)[:16]
    if is_complete(target):
        check_package(target)
        logger.info("This very package is in %s.", target)
        return ModelDirectory(target)
    if parameters.signing_key:
        parameters = parameters.model_copy(update={"signing_key": folders.locate(parameters.signing_key)})
    prompt = PromptSettings.model_validate(prompt_settings)
    package = make_package(target, Ingredients(base, tuned, prompt, max_new_tokens, answer_schema, **facts), parameters)
    logger.info("Packaged as %s.", package.sha256[:16])
    return package


def check_parity(
    package: ModelDirectory,
    tuned: ModelDirectory,
    records: Shards,
    examples: Shards,
    precision: str,
    max_new_tokens: int,
    model: ModelParameters,
    parameters: DeploymentParameters,
    folders: FolderParameters,
) -> dict[str, Any]:
    """Compare the packaged model with the evaluated one on some test conversations, both in the evaluation's precision."""
    import torch

    from luthier.machine import resolve_precision
    from luthier.models import load_tokenizer, load_tuned
    from luthier.packages import load_package
    from luthier.pipelines.deployment.parity import compare, measure

    table = held_out(records, examples, parameters.parity.examples)
    conversations = [(str(row["id"]), list(row["messages"])) for row in table.to_dict("records")]
    if not conversations:
        raise UserError("There is no test conversation to compare the package on: make split.test larger.")
    base = resolve_base(model, folders)
    dtype = torch.bfloat16 if resolve_precision(precision) == "bf16" else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    evaluated = measure(load_tuned(base, tuned, dtype).to(device), load_tokenizer(base), conversations, max_new_tokens)
    loaded, tokenizer, _ = load_package(package.folder, dtype, base=base)
    packaged = measure(loaded.to(device), tokenizer, conversations, max_new_tokens)
    figures = compare(evaluated, packaged, parameters.parity.tolerance)
    logger.info(
        "The package is the evaluated model: largest difference %.2g nats per token, %d of %d texts equal, %d near ties.",
        figures["largest_difference"],
        figures["equal_texts"],
        figures["conversations"],
        figures["near_ties"],
    )
    return figures


def register_model(
    package: ModelDirectory,
    parity: dict[str, Any],
    gate: dict[str, Any],
    lineage: dict[str, Any],
    evaluation: dict[str, Any],
    folders: FolderParameters,
) -> dict[str, Any]:
    """Make the package the candidate in the registry, with its gate's decision and its lineage as tags.

    Raises:
        UserError: if no MLflow run is active to keep the package.
    """
    import mlflow

    from luthier.registry import of_active_run

    registry, run = of_active_run(folders.registry), mlflow.active_run()
    if registry is None or run is None:
        raise UserError("There is no MLflow run to register the model under: run it through `kedro run`.")
    measured = evaluation["models"]["tuned"]
    figures = {metric: measured[metric]["value"] for metric in MAIN_FIGURES if metric in measured}
    version = registry.register(package.folder, run.info.run_id, gate["decision"], figures, lineage["data"], lineage["commit"])
    logger.info("Registered as version %d of %s, the candidate; parity %s.", version.number, registry.name, parity["equal_texts"])
    return {"model": registry.name, "version": version.number, "manifest": version.manifest, "gate": version.gate}
