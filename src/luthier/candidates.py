"""From a parameter to what answers: a base model, a tuned one, a registered version, an endpoint."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from luthier.answers import LocalAnswerer, identity_of
from luthier.artefacts import hash_of
from luthier.configuration import FolderParameters, ModelParameters, Parameters
from luthier.endpoint import Endpoint
from luthier.errors import UserError
from luthier.models import ModelDirectory, load_model, load_tokenizer, load_tuned, resolve_base
from luthier.packages.contents import PROMPT
from luthier.text.prepare import PromptSettings

if TYPE_CHECKING:
    from luthier.registry import Registry, Version

TAKEN = ("base", "tuned", "constrained", "champion", "majority", "tfidf")
"""Names of the models that are always compared."""
REGISTRY_VARIABLE = "LUTHIER_REGISTRY_URI"
"""Environment variable: MLflow whose versions are asked, where it is not the one that the run is logged to."""


class Candidate(Parameters):
    """One more model to compare with: a version of the registry, or a model behind an endpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What to call it in tables and reports."""
    version: int | str | None = None
    """Number or alias of a registered version."""
    endpoint: Endpoint | None = None
    """An OpenAI-compatible endpoint, so that a hosted model can be the baseline. It is sent the prepared held-out messages."""

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in TAKEN:
            raise ValueError(f"is taken: {', '.join(TAKEN)} are always compared or reserved; choose another name")
        return name

    @model_validator(mode="after")
    def _is_one_thing(self) -> "Candidate":
        if (self.version is None) == (self.endpoint is None):
            raise ValueError("give either version (a number or an alias) or endpoint (url and model)")
        return self


def _names_differ(candidates: "tuple[Candidate, ...]") -> "tuple[Candidate, ...]":
    names = [candidate.name for candidate in candidates]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(map(repr, repeated))} names more than one candidate: each needs a name of its own")
    return candidates


Candidates = Annotated[tuple[Candidate, ...], AfterValidator(_names_differ)]
"""Candidates whose names differ."""


@dataclass(frozen=True)
class Asking:
    """How models on this machine are asked, the same for all of them."""

    max_new_tokens: int
    """Where an answer is cut."""
    batch_tokens: int
    """Prompt and answer tokens of one batch at most."""
    precision: str = "auto"
    """`bf16`, `fp32`, or `auto`: what this machine computes in."""
    schema: Mapping[str, Any] | None = None
    """JSON Schema that answers are held to; None leaves them free."""

    def answerer(self, name: str, weights: str, load: Callable[[Any], tuple[Any, Any]]) -> LocalAnswerer:
        """Return what asks the model that `load` loads in the torch dtype that it is given."""
        from luthier.machine import resolve_precision

        precision = resolve_precision(self.precision)

        def loaded() -> tuple[Any, Any]:
            import torch

            return load(torch.bfloat16 if precision == "bf16" else torch.float32)

        lengths = {"max_new_tokens": self.max_new_tokens, "batch_tokens": self.batch_tokens}
        held = {} if self.schema is None else {"schema": hash_of(dict(self.schema))}
        identity = identity_of(weights, precision=precision, **lengths, **held)
        return LocalAnswerer(name, identity, loaded, **lengths, schema=self.schema)


def base_answerer(model: ModelParameters, folders: FolderParameters, asking: Asking, name: str = "base") -> LocalAnswerer:
    """Return the base model.

    Raises:
        UserError: if there is no such model.
    """
    base = resolve_base(model, folders)
    return asking.answerer(name, base.identity, lambda dtype: (load_model(base, dtype), load_tokenizer(base)))


def tuned_answerer(
    tuned: ModelDirectory, model: ModelParameters, folders: FolderParameters, asking: Asking, name: str = "tuned"
) -> LocalAnswerer:
    """Return a tuned model on its base.

    Raises:
        UserError: if there is no such base, and when it is loaded, if the model was trained on another one.
    """
    base = resolve_base(model, folders)
    weights = f"{base.identity}+{tuned.sha256}"
    return asking.answerer(name, weights, lambda dtype: (load_tuned(base, tuned, dtype), load_tokenizer(base)))


@dataclass(frozen=True)
class Registered:
    """A version of the registry, with its package on this machine."""

    model: str
    """The registered model."""
    version: "Version"
    package: Path

    @property
    def name(self) -> str:
        """Model and version, such as `luthier@3`."""
        return f"{self.model}@{self.version.number}"

    @property
    def settings(self) -> PromptSettings:
        """How a row or a client's messages become a prompt of this model."""
        return PromptSettings.model_validate_json((self.package / PROMPT).read_text(encoding="utf-8"))

    @property
    def max_new_tokens(self) -> int:
        """How long its answers may be, as it was evaluated."""
        return int(json.loads((self.package / "generation_config.json").read_text(encoding="utf-8"))["max_new_tokens"])

    def answerer(
        self, model: ModelParameters, folders: FolderParameters, asking: Asking, name: str | None = None
    ) -> LocalAnswerer:
        """Return what asks it.

        Raises:
            UserError: if it is an adapter of another base than `model`, when it is loaded.
        """
        from luthier.packages import facts_of, load_package

        adapter = facts_of(self.package)["kind"] == "adapter"

        def load(dtype: Any) -> tuple[Any, Any]:
            base = resolve_base(model, folders) if adapter else None
            loaded, tokenizer, _ = load_package(self.package, dtype, self.version.manifest, base=base)
            return loaded, tokenizer

        return asking.answerer(name or self.name, f"package:{self.version.manifest}", load)


def readable_registry(folders: FolderParameters) -> "Registry | None":
    """Return the registry whose versions are asked: that of the active MLflow run, or of the run that is done again.

    Args:
        folders: of the project, whose cache of packages is used.
    """
    from luthier.registry import of_active_run

    return of_active_run(folders.registry, os.environ.get(REGISTRY_VARIABLE))


def fetch_version(which: int | str, folders: FolderParameters, parameter: str) -> Registered:
    """Return a version of the registry that the active MLflow run belongs to, its package checked.

    An alias moves, so the run keeps as a tag which version it was: to do the run again takes the same.

    Args:
        which: number or alias.
        folders: of the project, whose cache of packages is used.
        parameter: where the version is named, for errors and the tag.

    Raises:
        UserError: if there is no such version, its bytes are not those that were registered, or no run is active.
    """
    registry = readable_registry(folders)
    if registry is None:
        raise UserError(f"{parameter}: no MLflow run says which registry is meant: run it through `kedro run`.")
    try:
        version = registry.resolve(which)
    except UserError as error:
        raise UserError(f"{parameter}: {error}") from None
    import mlflow

    from luthier.lineage import VERSION_TAG

    mlflow.set_tag(f"{VERSION_TAG}{parameter}", version.number)
    return Registered(registry.name, version, registry.fetch(version, folders.registry))
