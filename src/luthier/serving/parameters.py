"""Parameters of serving."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from luthier.artefacts import write_atomically
from luthier.configuration import FolderParameters, Parameters
from luthier.serving.routing import widths

logger = logging.getLogger(__name__)

LOG_VARIABLE = "LUTHIER_REQUEST_LOG_URI"
"""Environment variable that names the database of the request log, in place of `serving.log.uri`."""


class LogParameters(Parameters):
    """What is kept of requests and feedback."""

    uri: str = "sqlite:///data/06_models/serving/requests.db"
    """SQLAlchemy's URL of a SQLite or PostgreSQL database, without a password; the catalog reads it too, so set it in globals."""
    text: Literal["scrubbed", "none"] = "scrubbed"
    """`scrubbed` keeps messages and answers without personal data; `none` keeps no text, so corrections cannot be learnt from."""
    retention_days: float | None = Field(default=90, gt=0)
    """Older requests are deleted, and the feedback on them; null keeps all."""
    queue: int = Field(default=10_000, ge=1)
    """Rows that wait for the database at most; further ones are dropped and counted."""

    @model_validator(mode="before")
    @classmethod
    def _show_no_password(cls, values: Any) -> Any:
        # parameters are logged with a run, and an error would repeat what was written here
        uri = values.get("uri") if isinstance(values, Mapping) else None
        if isinstance(uri, str) and re.search(r"^[^/@]*://[^/@]*:[^@]*@|[?&]password=", uri):
            return {**values, "uri": f"(a password: put it into PGPASSWORD or ~/.pgpass, or the whole URL into {LOG_VARIABLE})"}
        return values

    @field_validator("uri")
    @classmethod
    def _is_database(cls, uri: str) -> str:
        if urlsplit(uri).scheme.split("+")[0] not in ("sqlite", "postgresql"):
            raise ValueError("must begin with sqlite:/// or postgresql+psycopg://, and hold no password")
        return uri

    def locate(self, folders: FolderParameters, environ: Mapping[str, str]) -> str:
        """Return the URL of the database: of the environment, or of these parameters. Paths are absolute."""
        uri = environ.get(LOG_VARIABLE) or self.uri
        scheme, slashes, path = uri.partition(":///")
        return f"{scheme}{slashes}{folders.locate(path)}" if scheme.startswith("sqlite") and slashes else uri


class LimitParameters(Parameters):
    """What one request may ask, and how long it may take."""

    body_bytes: int = Field(default=1_000_000, ge=1_000)
    """A larger body is refused (413)."""
    json_depth: int = Field(default=64, ge=8, le=200)
    """Lists and objects within one another (400)."""
    messages: int = Field(default=256, ge=1)
    """Turns of a conversation (400)."""
    characters: int = Field(default=200_000, ge=1)
    """Characters of all turns together (400); the model's context is a limit of its own."""
    queue: int = Field(default=64, ge=1)
    """Requests that wait for an engine; further ones are refused (429)."""
    rate_per_minute: int | None = Field(default=None, ge=1)
    """Requests of one key (429); null sets no limit."""
    queue_seconds: float = Field(default=10, gt=0)
    """How long a request waits for an engine (503)."""
    first_token_seconds: float = Field(default=30, gt=0)
    """How long the first token may take (503)."""
    total_seconds: float = Field(default=300, gt=0)
    """How long an answer may take (503, or an error in the stream)."""

    @model_validator(mode="after")
    def _in_order(self) -> "LimitParameters":
        if not max(self.queue_seconds, self.first_token_seconds) <= self.total_seconds:
            raise ValueError("total_seconds must not be below queue_seconds or first_token_seconds")
        return self


class VariantParameters(Parameters):
    """One arm of an experiment."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    """What the log, the metrics and the answers' headers call it."""
    version: int | str
    """A registered version, by number or alias; aliases are followed."""
    weight: float = Field(ge=0, le=1)
    """Share of the subjects, in steps of 0.0001."""


class ExperimentParameters(Parameters):
    """Who gets which version."""

    id: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Names the experiment and deals its subjects: a new experiment needs a new one."""
    variants: tuple[VariantParameters, ...] = Field(
        default=(VariantParameters(name="champion", version="champion", weight=1.0),), min_length=1
    )
    """The control first: it answers where another cannot."""
    shadow: int | str | None = None
    """A version that also answers each request, in the background: logged, never shown."""

    @field_validator("variants")
    @classmethod
    def _can_be_dealt(cls, variants: tuple[VariantParameters, ...]) -> tuple[VariantParameters, ...]:
        names = [variant.name for variant in variants]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(repeated)}: several variants have this name")
        widths({variant.name: variant.weight for variant in variants})
        return variants


class EngineParameters(Parameters):
    """What generates."""

    kind: Literal["embedded", "upstream"] = "embedded"
    """`embedded`: a process of ours for each version; `upstream`: servers that speak OpenAI's API, such as vLLM."""
    urls: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Of `upstream`: version or alias -> what stands before `/chat/completions`, one URL for each replica."""
    key_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the upstream's key. Never the key itself."""
    slots: int = Field(default=8, ge=1)
    """Requests that an embedded engine answers at a time."""
    cache_tokens: int = Field(default=16_384, ge=256)
    """Tokens of prompts and answers that an embedded engine holds for all its slots: bounds its memory."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Where an answer is cut whose request does not say; null takes what the model was registered with."""
    warm: tuple[str, ...] = ("previous", "candidate")
    """Aliases whose versions run as well, so that a rollback or a promotion takes no start; each takes a model's memory."""
    spare: bool = True
    """Whether a process waits, its libraries loaded, to take the place of one that dies, for a few hundred MB."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Numbers that an embedded engine computes in; `auto` is what this machine does fast."""

    @field_validator("urls")
    @classmethod
    def _are_plain(cls, urls: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for version, replicas in urls.items():
            if not replicas:
                raise ValueError(f"{version}: names no URL")
            for number, url in enumerate(replicas, 1):
                parts = urlsplit(url)
                if parts.username is not None or parts.password is not None:
                    raise ValueError(f"{version}, URL {number}: must hold no password: the key goes into key_variable's variable")
                if parts.scheme not in ("http", "https") or not parts.hostname:
                    raise ValueError(f"{version}, URL {number}: must begin with http:// or https:// and name a host")
        return urls

    @model_validator(mode="after")
    def _has_its_urls(self) -> "EngineParameters":
        if self.kind == "upstream" and not self.urls:
            raise ValueError("kind: upstream needs urls, such as {champion: [http://localhost:8000/v1]}")
        if self.kind == "embedded" and self.urls:
            raise ValueError("urls are for kind: upstream")
        return self


class ServingParameters(Parameters):
    """How the model is served."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; any but this machine's own needs keys."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    model: str = Field(default="luthier", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """The registered model, and what clients call it."""
    subject_header: str = Field(default="x-luthier-subject", pattern=r"^[a-z][a-z0-9-]{0,63}$")
    """Header by which a client says who asks; it goes before the request's `user`."""
    poll_seconds: float = Field(default=0.5, gt=0, le=60)
    """How often the deployment log is looked at: promotions and rollbacks take effect then, or when an engine has started."""
    drain_seconds: float = Field(default=30, ge=0)
    """How long answers under way may take when the gateway stops."""
    log: LogParameters = Field(default_factory=LogParameters)
    """The request log."""
    limits: LimitParameters = Field(default_factory=LimitParameters)
    """Limits of requests."""
    experiment: ExperimentParameters = Field(default_factory=ExperimentParameters)
    """Champion and challengers."""
    engine: EngineParameters = Field(default_factory=EngineParameters)
    """What generates."""

    def only(self, version: int) -> "ServingParameters":
        """Return the same with one version for everybody, and nothing beside it."""
        variant = VariantParameters(name="only", version=version, weight=1.0)
        experiment = ExperimentParameters(id=f"only-{version}", variants=(variant,))
        return self.model_copy(
            update={"experiment": experiment, "engine": self.engine.model_copy(update={"warm": (), "spare": False})}
        )


def experiment_file(folders: FolderParameters) -> Path:
    """Return where the gateway keeps an administrator's experiment, and monitoring finds it."""
    return Path(folders.work).parent / "serving" / "experiment.json"


def running_experiment(kept: Path | None, configured: ExperimentParameters) -> ExperimentParameters:
    """Return the experiment that an administrator asked for, unless the parameters changed since."""
    if kept is None or not kept.is_file():
        return configured
    try:
        said: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if ExperimentParameters.model_validate(said["configured"]) == configured:
            return ExperimentParameters.model_validate(said["asked"])
    except (ValueError, KeyError, ValidationError) as error:
        logger.warning("%s is no experiment and is not used: %s", kept, error)
    return configured


def keep_experiment(kept: Path, configured: ExperimentParameters, asked: ExperimentParameters) -> None:
    """Write down what an administrator asked for, and the parameters from which it departs."""
    said = {"configured": configured, "asked": asked}
    write_atomically(kept, json.dumps({name: one.model_dump(mode="json") for name, one in said.items()}, indent=2))
