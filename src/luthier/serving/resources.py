"""What the machine does for the gateway, read when Prometheus asks: engines, processes, GPUs."""

import contextlib
import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from luthier.serving.engines.engine import Engine

GATEWAY, WORKERS = "gateway", "workers"


class Resources(Collector):
    """Engines by version, and the gateway's processes."""

    def __init__(self, engines: Callable[[], Mapping[int, Engine]]) -> None:
        """Read nothing yet.

        Args:
            engines: returns the engine of each version that is served.
        """
        self._engines = engines
        self._processes, self._gpus = _Processes(), _Gpus()

    def describe(self) -> Iterable[Metric]:
        """Say nothing: what there is to read is known once it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        yield from self._of_engines()
        yield from self._processes.collect()
        yield from self._gpus.collect()

    def _of_engines(self) -> Iterator[Metric]:
        label = ["model_version"]
        alive = GaugeMetricFamily("luthier_engine_up", "1 if the engine answers.", labels=label)
        running = GaugeMetricFamily("luthier_engine_running", "Requests that it is answering.", labels=label)
        silent = GaugeMetricFamily("luthier_engine_silent_seconds", "Since its last token, while it answers.", labels=label)
        cached = GaugeMetricFamily("luthier_engine_cached_tokens", "Tokens whose keys and values it holds.", labels=label)
        tokens = CounterMetricFamily("luthier_engine_tokens", "Tokens of answers that it streamed.", labels=label)
        now = time.monotonic()
        for version, engine in self._engines().items():
            status, name = engine.status(), [str(version)]
            alive.add_metric(name, status.alive)
            running.add_metric(name, status.running)
            silent.add_metric(name, now - status.last_progress if status.running and status.last_progress is not None else 0.0)
            tokens.add_metric(name, status.tokens_total)
            if status.cached is not None:
                cached.add_metric(name, status.cached)
        return iter((alive, running, silent, cached, tokens))


class _Processes:
    """The gateway and its workers. What ended workers used is still counted: a counter must not fall."""

    def __init__(self) -> None:
        self._seconds: dict[str, dict[tuple[int, float], float]] = {GATEWAY: {}, WORKERS: {}}

    def collect(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily("luthier_process_memory_bytes", "Resident.", labels=["process"])
        cpu = CounterMetricFamily("luthier_process_cpu_seconds", "Of all cores.", labels=["process"])
        here = psutil.Process()
        for name, processes in ((GATEWAY, [here]), (WORKERS, here.children(recursive=True))):
            resident = 0
            for process in processes:
                with contextlib.suppress(psutil.Error):  # it has just ended
                    resident += process.memory_info().rss
                    self._seconds[name][process.pid, process.create_time()] = sum(process.cpu_times()[:2])
            memory.add_metric([name], resident)
            cpu.add_metric([name], sum(self._seconds[name].values()))
        yield memory
        yield cpu


class _Gpus:
    """NVIDIA's GPUs, by the package nvidia-ml-py where it is installed and finds some."""

    def __init__(self) -> None:
        self._nvml: Any = None
        with contextlib.suppress(Exception):  # no package, no driver, no GPU: there is nothing to show
            nvml: Any = importlib.import_module("pynvml")
            nvml.nvmlInit()
            self._nvml = nvml

    def collect(self) -> Iterator[Metric]:
        if self._nvml is None:
            return
        nvml = self._nvml
        used = GaugeMetricFamily("luthier_gpu_memory_used_bytes", "Of all processes.", labels=["gpu"])
        busy = GaugeMetricFamily("luthier_gpu_utilization_ratio", "Share of time in which it worked.", labels=["gpu"])
        count = 0
        with contextlib.suppress(nvml.NVMLError):  # a driver that fails must not end all other metrics
            count = nvml.nvmlDeviceGetCount()
        for number in range(count):
            with contextlib.suppress(nvml.NVMLError):  # a GPU that is lost, or a part of one (MIG), does not tell everything
                gpu = nvml.nvmlDeviceGetHandleByIndex(number)
                used.add_metric([str(number)], nvml.nvmlDeviceGetMemoryInfo(gpu).used)
                busy.add_metric([str(number)], nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100)
        yield used
        yield busy
