"""Parameters of monitoring."""

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator, model_validator

from luthier.configuration import Parameters
from luthier.errors import did_you_mean
from luthier.pipelines.monitoring.drift import MINIMUM, Rule
from luthier.pipelines.monitoring.experiment import GUARDRAILS, Guardrail, Plan

METRICS = ("rating", "voted", "errors", "log_seconds", "log_characters")
"""What is known of each subject of an experiment."""


class DriftParameters(Parameters):
    """When requests differ from the training messages."""

    window: int = Field(default=200, ge=50)
    """Requests of a window."""
    windows: int = Field(default=30, ge=3)
    """Windows that are compared and drawn, the newest."""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """Chance that a window is said to have drifted though it has not, over all features."""
    minimum: dict[str, float] = Field(default_factory=lambda: dict(MINIMUM))
    """The smallest effect that counts, by feature; what is left out is as shipped."""
    draws: int = Field(default=1_999, ge=99)
    """Permutations of a test."""
    reference_rows: int = Field(default=5_000, ge=100)
    """Training messages that windows are compared with, at most."""

    @field_validator("minimum")
    @classmethod
    def _are_features(cls, minimum: dict[str, float]) -> dict[str, float]:
        for name, effect in minimum.items():
            if name not in MINIMUM:
                raise ValueError(f"there is no feature {name!r}{did_you_mean(name, MINIMUM)}; features: {', '.join(MINIMUM)}")
            if effect < 0:
                raise ValueError(f"{name}: must not be below 0")
        return dict(MINIMUM) | minimum

    @model_validator(mode="after")
    def _can_be_shown(self) -> "DriftParameters":
        least = math.ceil(len(MINIMUM) / self.alpha)
        if self.draws < least:
            told = f"{self.draws} permutations of {len(MINIMUM)} features can never show anything at alpha {self.alpha:g}"
            raise ValueError(f"{told}: draws must be at least {least}")
        return self

    def rule(self) -> Rule:
        """Return when a window has drifted."""
        return Rule(alpha=self.alpha, minimum=self.minimum, fewest=self.window, draws=self.draws)


class QualityParameters(Parameters):
    """What is known of the answers: votes, and right answers that come later."""

    vote: str = Field(default="helpful", pattern=r"^[a-z][a-z0-9_]{0,63}$")
    """Name of the votes that count."""
    labels: str | None = None
    """Right answers: a file or URI of JSON lines `{"request": ID, "answer": ...}`; null if there are none."""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """Chance that quality is ever said to be too low though it is not, and that a window of votes is said to be lower than those
    before; two of three windows make it a fall."""
    least_rating: float | None = Field(default=None, ge=0, le=1)
    """Share of votes up below which the model is to be trained again; null sets no limit."""
    least_accuracy: float | None = Field(default=None, ge=0, le=1)
    """Share of answers that are right, below which the model is to be trained again; null sets no limit."""
    fall: float = Field(default=0.1, gt=0, le=1)
    """How much lower than before the share of votes up must be to count: of the newest window of votes."""
    window: int = Field(default=100, ge=20)
    """Votes of that window."""


class GuardrailParameters(Parameters):
    """What a challenger may not make worse."""

    metric: Literal["rating", "voted", "errors", "log_seconds", "log_characters"]
    """Of each subject: share of votes up, of answers voted on, of requests that failed; mean logarithm of the seconds and of the
    characters of an answer."""
    margin: float = Field(gt=0)
    """How much worse it may be: lower for `rating` and `voted`, higher for the others."""


class ExperimentPlanParameters(Parameters):
    """How experiments are decided; write it down before the first subject comes."""

    metric: Literal["rating", "voted"] = "rating"
    """What the challenger is to be better in."""
    margin: float = Field(default=0.05, gt=0, lt=1)
    """The smallest difference that matters."""
    alpha: float = Field(default=0.025, gt=0, lt=0.5)
    """Chance that a challenger that is no better ever wins, and that one that is no worse ever loses."""
    guardrail_alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance that any guardrail that is kept is ever said to be broken."""
    most_subjects: int | None = Field(default=None, ge=200)
    """Subjects with the metric, of both variants, at which it ends; null lets it go on."""
    guardrails: tuple[GuardrailParameters, ...] = tuple(
        GuardrailParameters(metric=one.metric, margin=one.margin) for one in GUARDRAILS
    )
    """What may not become worse."""

    def plan(self, control: str, challenger: str, weights: Mapping[str, float]) -> Plan:
        """Return the plan of an experiment."""
        shares = ("rating", "voted", "errors")
        guardrails = (Guardrail(g.metric, g.margin, g.metric in shares) for g in self.guardrails)
        return Plan(
            control,
            challenger,
            weights,
            self.metric,
            margin=self.margin,
            guardrails=tuple(guardrails),
            alpha=self.alpha,
            guardrail_alpha=self.guardrail_alpha,
            most_subjects=self.most_subjects,
        )


class WorkflowParameters(Parameters):
    """A workflow of GitHub's that trains."""

    repository: str = Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")
    """OWNER/NAME."""
    workflow: str = Field(default="train.yml", pattern=r"^[A-Za-z0-9_.-]+\.ya?ml$")
    """Its file."""
    ref: str = "main"
    """Branch or tag."""
    token_variable: str = Field(default="GITHUB_TOKEN", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with a token that may start workflows. Never the token itself."""
    api: str = Field(default="https://api.github.com", pattern=r"^https?://")
    """Of GitHub Enterprise: another one."""


class ActParameters(Parameters):
    """What `kedro monitor --act` may do by itself."""

    cool_down_hours: float = Field(default=24, ge=0)
    """How long after an act none of its kind (to take back, to retrain) is done again."""
    most_a_day: int = Field(default=2, ge=0)
    """Acts of a kind within 24 hours, at most."""
    gateway: str | None = Field(default=None, pattern=r"^https?://")
    """Address of the gateway, to end an experiment; null takes that of serving.host and serving.port."""
    rows: str = "data/01_raw/traffic"
    """Folder for what users corrected, and for messages whose labels came: a file for each retraining. Name it in data.sources to
    train on it."""
    parameters: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Of a retraining here, as `kedro run --params` takes them."""
    workflow: WorkflowParameters | None = None
    """Trains in place of a run here."""

    @field_validator("rows")
    @classmethod
    def _is_a_folder_here(cls, rows: str) -> str:
        if ":" in rows:
            raise ValueError("must be a folder of this machine, such as data/01_raw/traffic")
        return rows


class MonitoringParameters(Parameters):
    """What is watched, and what follows from it."""

    every_seconds: float = Field(default=15, ge=1, le=86_400)
    """How often `kedro monitor` looks whether there is anything new."""
    patience_seconds: float = Field(default=300, ge=1)
    """How long new requests and votes wait at most until the pipeline runs; a full window does not wait."""
    host: str = "127.0.0.1"
    """Address of `kedro monitor`'s own `/metrics`."""
    port: int = Field(default=9464, ge=0, le=65535)
    """Its port; 0 takes a free one."""
    drift: DriftParameters = Field(default_factory=DriftParameters)
    """Requests against training messages."""
    quality: QualityParameters = Field(default_factory=QualityParameters)
    """Votes and right answers."""
    experiment: ExperimentPlanParameters = Field(default_factory=ExperimentPlanParameters)
    """Champion against challenger."""
    act: ActParameters = Field(default_factory=ActParameters)
    """What may be done without a person."""
