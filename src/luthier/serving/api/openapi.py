"""The description of the gateway's API: FastAPI's, with the bodies that the gateway reads and writes by itself."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from luthier.serving.api.errors import CODES

_REFERENCE = "#/components/schemas/{model}"
COMPLETIONS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "OpenAI's completion; with `stream: true` its chunks, one an event, and `[DONE]` after the last.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}},
    }
}
"""What the chat route answers, for its description."""
_ERROR: dict[str, Any] = {
    "type": "object",
    "description": "A request that failed.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong, and what to do instead."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field of the request."},
                "code": {"enum": list(CODES), "description": "Why, for programs."},
            },
        }
    },
}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the part of a route's description that tells its body.

    The gateway reads bodies itself, to bound and to count them; FastAPI would tell mistakes in a shape of its own.
    """
    return {"requestBody": {"required": True, "content": {"application/json": _schema(model.__name__)}}}


def describe(app: FastAPI, models: tuple[type[BaseModel], ...], opened: tuple[str, ...]) -> dict[str, Any]:
    """Return the description of an app.

    Args:
        app: the application.
        models: those that `body_of` refers to.
        opened: paths that ask for no key.
    """
    page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas: dict[str, Any] = {"Error": _ERROR}
    for model in models:
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas |= {**schema.pop("$defs", {}), model.__name__: schema}
    page["components"] = {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    page["security"] = [{"key": []}]
    failed = {"description": "Any error.", "content": {"application/json": _schema("Error")}}
    for path, operations in page["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own, which nothing here answers
            operation["responses"]["default"] = failed
            if path in opened:
                operation["security"] = []
    return page


def _schema(model: str) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(model=model)}}
