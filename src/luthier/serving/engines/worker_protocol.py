"""What a worker is told when it starts, and what it says: one line of JSON each way."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from luthier.models import Base
from luthier.serving.parameters import LimitParameters


class WorkerSettings(BaseModel):
    """What a worker loads, and how it answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: Path
    manifest: str
    """Root sha256 that the package must have."""
    base: Base | None = None
    """Of an adapter package."""
    name: str
    """What the version is called, such as `luthier@3`."""
    key: str = Field(default="", repr=False)
    """That requests must carry."""
    precision: Literal["bf16", "fp32"]
    slots: int
    """Requests that are answered at a time."""
    cache_tokens: int
    """Tokens of prompts and answers that are held for all slots."""
    max_new_tokens: int | None = None
    """Where an answer is cut whose request does not say; None takes the package's setting."""
    limits: LimitParameters


class Ready(BaseModel):
    """A worker listens."""

    port: int
    context: int
    """Tokens of prompt and answer together."""


class Progress(BaseModel):
    """How far a worker is."""

    running: int
    """Requests that it answers."""
    silent: float
    """Seconds since its last token, or since it had nothing to do."""
    cached: int | None = None
    """Tokens whose keys and values it holds."""


class Failure(BaseModel):
    """A worker cannot load its package."""

    error: str
