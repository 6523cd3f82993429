"""A gateway that listens, and its clients."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
from openai import AsyncOpenAI, OpenAI

from luthier.serving.engines.engine import Engine
from luthier.serving.engines.upstream import Upstream
from luthier.serving.gateway import create_app
from luthier.serving.keys import read_keys
from luthier.serving.limits import Slots
from luthier.serving.live import Gateway, Live, Served
from luthier.serving.metrics import Metrics
from luthier.serving.parameters import ExperimentParameters, LimitParameters, ServingParameters
from luthier.serving.records.feedback import FeedbackStore
from luthier.serving.records.log import RequestLog
from luthier.serving.records.logged import read_requests
from luthier.serving.routing import Experiment, RouteTable, Variant, resolve_experiment
from luthier.text.prepare import PromptSettings, ScrubSettings
from tests.serving.logs import uri_of
from tests.serving.scripted import listening

KEY, ADMIN = "sk-client-0123456789", "sk-admin-0123456789"
CONTEXT = 1000
CHAT = "/v1/chat/completions"
HELLO = {"model": "luthier", "messages": [{"role": "user", "content": "Hello"}]}
PII_KEY = "placeholders"
PROMPTS = PromptSettings(system="Answer briefly.", scrub=ScrubSettings())
ALICE, ROOT = {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Bearer {ADMIN}"}


@dataclass
class Running:
    """A gateway that listens."""

    gateway: Gateway
    address: str
    log_uri: str
    calls: list[Any] = field(default_factory=list)
    """What an administrator asked for."""

    @cached_property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key=KEY, max_retries=0, timeout=20)

    @property
    def async_client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.address}/v1", api_key=KEY, max_retries=0, timeout=20)

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=20, trust_env=False, verify=False)

    def post(self, path: str, headers: Mapping[str, str] = ALICE, **what: Any) -> httpx.Response:
        return self.http.post(path, headers=headers, **what)

    def get(self, path: str, headers: Mapping[str, str] = ALICE) -> httpx.Response:
        return self.http.get(path, headers=headers)

    def rows(self) -> pd.DataFrame:
        """Return the log, all that is over in it."""
        assert self.gateway.log.flush()
        return read_requests(self.log_uri)

    def counted(self, operation: str = "chat", **labels: str) -> int:
        """Return how many requests the metrics have."""
        wanted = {"gen_ai_operation_name": operation, **labels}
        return sum(count for found, count in self._counts() if wanted.items() <= found.items())

    def _counts(self) -> Iterator[tuple[dict[str, str], int]]:
        for family in self.gateway.metrics.registry.collect():
            for sample in family.samples:
                if sample.name == "gen_ai_server_request_duration_seconds_count":
                    yield sample.labels, int(sample.value)

    @contextmanager
    def all_is_counted(self) -> Iterator[None]:
        """Check that afterwards the gateway answers, and that log and metrics have the same requests, each once."""
        yield
        assert self.post(CHAT, json=HELLO).json()["choices"][0]["message"]["content"] == "Hello"
        assert eventually(lambda: self.rows().error.fillna("none").value_counts().to_dict() == self._counted_by_error())
        rows = self.rows()
        assert rows.request.is_unique
        assert len(rows) == self.counted() + self.counted("shadow")
        metrics = self.gateway.metrics
        for zero in (metrics.running, metrics.queued, metrics.log_dropped):
            assert zero.collect()[0].samples[0].value == 0

    def _counted_by_error(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for labels, count in self._counts():
            found[labels["error_type"]] += count
        return dict(found)


@contextmanager
def gateway_of(
    folder: Path,
    engines: Mapping[int, Sequence[str] | Engine],
    weights: Sequence[float] = (1.0,),
    limits: Mapping[str, Any] | None = None,
    shadow: int | None = None,
    slots: int | None = None,
    prompts: PromptSettings = PROMPTS,
    max_new_tokens: int | None = 16,
    **log: Any,
) -> Iterator[Running]:
    """Start a gateway.

    Args:
        folder: of the log.
        engines: version -> URLs of its replicas, or its engine; the control first.
        weights: of the first versions, as variants `champion`, `challenger`.
        limits: other than the defaults.
        shadow: version that answers in the background.
        slots: requests that each engine answers at a time.
        prompts: of all versions.
        max_new_tokens: where an answer is cut whose request does not say.
        **log: of the request log.
    """
    parameters = ServingParameters(limits=LimitParameters(**limits or {}))
    variants = zip(("champion", "challenger"), engines, weights, strict=False)
    experiment = Experiment("test", tuple(Variant(*variant) for variant in variants), shadow)
    aliases = {"champion": next(iter(engines))}
    table = RouteTable({version: f"{version:064x}" for version in engines}, aliases, experiment)
    metrics, calls, uri = Metrics(), [], uri_of(folder)
    served = {
        version: Served(
            Upstream(found, "theirs") if isinstance(found, list | tuple) else found,
            prompts,
            CONTEXT,
            max_new_tokens,
            f"fp{version}",
            Slots(slots),
        )
        for version, found in engines.items()
    }

    async def note(*what: Any) -> None:
        calls.append(what)

    async def deal(asked: ExperimentParameters) -> None:
        dealt = resolve_experiment(
            asked.id, {one.name: (one.version, one.weight) for one in asked.variants}, asked.shadow, table.aliases
        )
        gateway.switch(Live(RouteTable(table.versions, table.aliases, dealt, sequence=1), served))

    with RequestLog(uri, on_drop=metrics.log_dropped.inc, **log) as requests:
        gateway = Gateway(
            parameters,
            read_keys({"LUTHIER_API_KEYS": f"alice:{KEY}", "LUTHIER_ADMIN_KEY": ADMIN}, parameters.host),
            Live(table, served),
            requests,
            FeedbackStore(requests),
            metrics,
            subject_key="subjects",
            pii_key=PII_KEY,
            reload=note,
            rollback=note,
            set_experiment=deal,
        )
        with listening(create_app(gateway)) as address:
            yield Running(gateway, address, uri, calls)


def eventually(holds: Any, seconds: float = 5.0) -> bool:
    """Wait until something holds; tell whether it came to that."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
