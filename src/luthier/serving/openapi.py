"""The description of the gateway's API: FastAPI's, with the bodies that the gateway reads by itself."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

_REFERENCE = "#/components/schemas/{model}"


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the part of a route's description that tells its body.

    The gateway reads bodies itself, to bound and to count them; FastAPI would tell mistakes in a shape of its own.
    """
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI, models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    """Return the description of an app, with the models that `body_of` refers to."""
    page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = page.setdefault("components", {}).setdefault("schemas", {})
    for model in models:
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas |= {**schema.pop("$defs", {}), model.__name__: schema}
    page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    page["security"] = [{"key": []}]
    return page
