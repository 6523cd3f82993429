"""What an administrator does with a running gateway: look at the registry now, take the champion back, change the experiment."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field, ValidationError

from luthier.serving.api.bodies import AnyBody, Body, read_json, validated
from luthier.serving.api.errors import invalid
from luthier.serving.api.openapi import body_of
from luthier.serving.limits import read_body
from luthier.serving.live import Gateway
from luthier.serving.parameters import ExperimentParameters


class RollbackRequest(Body):
    """Take the champion back."""

    reason: str = Field(min_length=1, max_length=500)
    """Why; the deployment log keeps it."""


class VariantRequest(Body):
    """One arm of an experiment."""

    name: str
    """What the log, the metrics and the answers' headers call it."""
    version: int | str
    """A registered version, by number or alias."""
    weight: float
    """Share of the subjects, in steps of 0.0001."""


class ExperimentRequest(Body):
    """Who gets which version, from now on."""

    id: str
    """Names the experiment and deals its subjects: a new experiment needs a new one."""
    variants: list[VariantRequest] = Field(min_length=1)
    """The control first."""
    shadow: int | str | None = None
    """A version that also answers each request, in the background."""


def admin_routes(gateway: Gateway) -> APIRouter:
    """Return the routes below `/admin`."""
    router = APIRouter(prefix="/admin", tags=["admin"])

    @router.post("/reload")
    async def reload() -> dict[str, Any]:
        """Look at the registry now, and serve what it says."""
        await gateway.reload()
        return standing(gateway)

    @router.post("/rollback", openapi_extra=body_of(RollbackRequest))
    async def rollback(request: Request) -> dict[str, Any]:
        """Take the champion back, and serve the one before."""
        said = await _said(gateway, request, RollbackRequest)
        await gateway.rollback(said.reason)
        return standing(gateway)

    @router.post("/experiment", openapi_extra=body_of(ExperimentRequest))
    async def experiment(request: Request) -> dict[str, Any]:
        """Deal the subjects anew."""
        said = await _said(gateway, request, ExperimentRequest)
        try:
            asked = ExperimentParameters.model_validate(said.model_dump())
        except ValidationError as error:
            told = [(".".join(map(str, detail["loc"])), detail["msg"]) for detail in error.errors(include_url=False)]
            raise invalid("; ".join(f"{field}: {what}" for field, what in told) + ".", told[0][0]) from None
        try:
            await gateway.set_experiment(asked)
        except ValueError as error:
            raise invalid(f"{error}.", "variants") from None
        return standing(gateway)

    return router


def standing(gateway: Gateway) -> dict[str, Any]:
    """Return what is served, and to whom."""
    table = gateway.live.table
    variants = [{"name": one.name, "version": one.version, "weight": one.weight} for one in table.experiment.variants]
    return {
        "sequence": table.sequence,
        "versions": {str(version): manifest for version, manifest in table.versions.items()},
        "aliases": dict(table.aliases),
        "experiment": {"id": table.experiment.id, "variants": variants, "shadow": table.experiment.shadow},
    }


async def _said(gateway: Gateway, request: Request, model: type[AnyBody]) -> AnyBody:
    limits = gateway.parameters.limits
    return validated(model, read_json(await read_body(request, limits), limits.body_bytes, limits.json_depth))
