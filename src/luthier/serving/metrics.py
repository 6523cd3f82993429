"""What Prometheus scrapes from `/metrics`: OpenTelemetry's names for generative AI, and a few of our own.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/, with dots written as underscores and units as suffixes; the
buckets of the histograms are those that it asks for. Labels only take values from closed sets. A user, a prompt, a request id, a
model name that a client made up is never one: each new value would be a time series for ever.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from luthier.serving.api.completion import Finish
from luthier.serving.api.errors import CODES, Code
from luthier.serving.routing import RouteTable
from luthier.text.language import LANGUAGES
from luthier.text.pii import PII_KINDS

DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKENS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
CHARACTERS = (50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 102400)
OTHER, NONE = "other", "none"
"""What stands for a value that is not known, and for one that there is none of."""
Reload = Literal["reloaded", "unchanged", "failed"]
Feedback = Literal["created", "updated", "unchanged", "refused"]
Rating = Literal["up", "down"]
_SERVED = ("variant", "model_version")
_LABELS = ("gen_ai_operation_name", "gen_ai_request_model", "gen_ai_response_model", "error_type", *_SERVED)


class Metrics:
    """All that is counted, in a registry of its own: tests and several gateways in a process do not meet."""

    def __init__(self) -> None:
        """Count nothing yet."""
        self.registry = registry = CollectorRegistry()
        self._models: frozenset[str] = frozenset()
        self._variants: frozenset[str] = frozenset()
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From the request to the end of its answer.",
            _LABELS,
            buckets=DURATIONS,
            registry=registry,
        )
        self._first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the request to the first token.",
            _LABELS,
            buckets=FIRST_TOKENS,
            registry=registry,
        )
        self._per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time of each token after the first.",
            _LABELS,
            buckets=PER_TOKEN,
            registry=registry,
        )
        self._tokens = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of a request.",
            (*_LABELS, "gen_ai_token_type"),
            buckets=TOKENS,
            registry=registry,
        )
        self._finished = Counter(
            "luthier_answers", "To clients, by why they ended.", ("finish_reason", *_SERVED), registry=registry
        )
        self._characters = Histogram(
            "luthier_input_characters", "Of the messages of a request.", buckets=CHARACTERS, registry=registry
        )
        self._languages = Counter("luthier_input_language", "Requests by language.", ("language",), registry=registry)
        self._pii = Counter("luthier_input_pii", "Personal data that was taken out, by kind.", ("kind",), registry=registry)
        self.running = Gauge("luthier_requests_running", "Requests that an engine is answering.", registry=registry)
        self.queued = Gauge("luthier_requests_queued", "Requests that wait for an engine.", registry=registry)
        self.log_dropped = Counter(
            "luthier_log_rows_dropped",
            "Rows of the request log that were lost: the queue was full, or no database took them.",
            registry=registry,
        )
        self.log_waiting = Gauge(
            "luthier_log_rows_waiting", "Rows of the request log that are not written yet.", registry=registry
        )
        self.restarts = Counter(
            "luthier_worker_restarts", "Engine processes that died and were started again.", registry=registry
        )
        self._reloads = Counter("luthier_reloads", "Looks at the registry, by what came of them.", ("result",), registry=registry)
        for result in get_args(Reload):  # a series that is born at 1 never increases
            self._reloads.labels(result)
        self._rollbacks = Counter("luthier_rollbacks", "Champions that were taken back.", registry=registry)
        self._feedback = Counter(
            "luthier_feedback", "Votes, by what came of them.", ("result", "variant", "rating"), registry=registry
        )
        self._info = Gauge(
            "luthier_model_info", "1 for each version that is served.", ("model_version", "manifest", "alias"), registry=registry
        )

    def request(
        self,
        asked: str,
        answered: str | None,
        version: int | None,
        variant: str | None,
        seconds: float,
        first_token_seconds: float | None = None,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        error: Code | None = None,
        finish: Finish | None = None,
        operation: str = "chat",
    ) -> None:
        """Count one request, answered or not.

        Args:
            asked: the model's name as the client gave it.
            answered: the version's name, such as `luthier@3`; none if nothing answered.
            version: its number.
            variant: the variant that answered; none if the client chose the version.
            seconds: from the request to the end.
            first_token_seconds: from the request to the first token, if there was one.
            prompt_tokens: of the messages, if they were counted.
            completion_tokens: of the answer.
            error: why it failed, if it did.
            finish: why the answer ended.
            operation: what was asked for, as OpenTelemetry names it.
        """
        labels = (
            operation,
            asked if asked in self._models else OTHER,
            NONE if answered is None else answered if answered in self._models else OTHER,
            NONE if error is None else error if error in CODES else OTHER,
            NONE if variant is None else variant if variant in self._variants else OTHER,
            NONE if version is None else str(version),
        )
        self._duration.labels(*labels).observe(seconds)
        if first_token_seconds is not None:
            self._first_token.labels(*labels).observe(first_token_seconds)
            if completion_tokens is not None and completion_tokens > 1:
                self._per_token.labels(*labels).observe((seconds - first_token_seconds) / (completion_tokens - 1))
        if finish is not None and operation != "shadow":  # nobody got that answer
            self._finished.labels(finish, *labels[-2:]).inc()
        for kind, tokens in (("input", prompt_tokens), ("output", completion_tokens)):
            if tokens is not None:
                self._tokens.labels(*labels, kind).observe(tokens)

    def asked(self, characters: int, language: str | None, findings: Mapping[str, int]) -> None:
        """Count what a request brought.

        Args:
            characters: of all its messages.
            language: of ISO 639-1; None if it cannot be told.
            findings: kind of personal data -> how often it was taken out.
        """
        self._characters.observe(characters)
        self._languages.labels(language if language in LANGUAGES else NONE).inc()
        for kind, count in findings.items():
            self._pii.labels(kind if kind in PII_KINDS else OTHER).inc(count)

    def serving(self, table: RouteTable) -> None:
        """Say what is served from now on. What was served before stays known: its last requests are still to be counted."""
        self._models |= frozenset(table.models)
        self._variants |= frozenset(variant.name for variant in table.experiment.variants)
        self._info.clear()
        for version, manifest in table.versions.items():
            aliases = ",".join(sorted(alias for alias, number in table.aliases.items() if number == version))
            self._info.labels(str(version), manifest, aliases).set(1)

    def reload(self, result: Reload) -> None:
        """Count a look at the registry."""
        self._reloads.labels(result).inc()

    def rollback(self) -> None:
        """Count a champion that was taken back."""
        self._rollbacks.inc()

    def feedback(self, result: Feedback, variant: str | None = None, rating: Rating | None = None) -> None:
        """Count a vote."""
        known = variant if variant in self._variants else OTHER
        self._feedback.labels(result, NONE if variant is None else known, rating or NONE).inc()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return what Prometheus asked for, and its media type.

        Args:
            accept: the header, by which Prometheus says which format it reads.
        """
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type
