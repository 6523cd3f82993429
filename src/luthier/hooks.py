"""What happens around a run: parameters are checked first, lineage is recorded, and a summary closes it."""

import logging
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from luthier.errors import UserError

logger = logging.getLogger(__name__)


class ParameterHooks:
    """Checks the whole configuration, and that the inputs exist, before anything expensive starts."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Validate all parameters at once.

        Raises:
            UserError: naming every wrong key with its file and line.
        """
        from luthier.configuration import validate_parameters
        from luthier.pipeline_registry import PARAMETERS
        from luthier.quiet import quiet_trackers

        quiet_trackers()
        source = Path(context.config_loader.conf_source)
        names = [context.env or context.config_loader.default_run_env, context.config_loader.base_env]
        values = context.config_loader["parameters"]
        validate_parameters(values, PARAMETERS, [source / name for name in names if name], context.config_loader.runtime_params)

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Say which pipeline makes an input that is missing.

        Raises:
            UserError: before the first node runs.
        """
        from luthier.pipeline_registry import register_pipelines

        missing = sorted(
            name for name in pipeline.inputs() if not name.startswith("param") and not (name in catalog and catalog.exists(name))
        )
        if not missing:
            return
        told = []
        rooms = {name: room for name, room in register_pipelines().items() if name != "__default__"}
        for name in missing:
            maker = next((room for room, pipe in rooms.items() if name in pipe.outputs() | pipe.datasets() - pipe.inputs()), None)
            version = (run_params.get("load_versions") or {}).get(name)
            what = f"{name} in version {version}" if version else name
            told.append(f"{what}: made by `kedro run --pipeline {maker}`" if maker else f"{what}: no pipeline makes it")
        raise UserError("These inputs do not exist yet:\n  " + "\n  ".join(told))


class LineageHooks:
    """Records in MLflow what a run stood on: commit, local changes, parameters, and the exact versions of its data."""

    def __init__(self) -> None:
        """Start with nothing recorded."""
        self._recorded: set[str] = set()
        self._root = Path()
        self._monitor: Any = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Remember where the project stands."""
        self._root = Path(context.project_path)

    @hook_impl(trylast=True)
    def before_pipeline_run(self, run_params: dict[str, Any], catalog: DataCatalog) -> None:
        """Tag the run with commit and command, and keep the local changes."""
        import mlflow
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        from luthier.lineage import commit, environment, flatten, local_changes

        self._recorded = set()
        if not mlflow.active_run():
            return
        changes = local_changes(self._root)
        mlflow.set_tags(
            {
                "luthier.git_commit": commit(self._root),
                "luthier.git_dirty": str(bool(changes)),
                **environment(run_params),
            }
        )
        if changes:
            mlflow.log_text(changes, "lineage/local_changes.diff")
        values = {name: catalog.load(name) for name in ("parameters",) if name in catalog}
        flat = flatten(values.get("parameters", {}))
        mlflow.log_params({key: str(value)[:500] for key, value in flat.items()})
        # not enable_system_metrics_logging: kedro-mlflow opens the run anew for each node, with a new monitor each time
        self._monitor = SystemMetricsMonitor(mlflow.active_run().info.run_id, sampling_interval=5)
        self._monitor.start()
        mlflow.log_dict({key: str(value) for key, value in flat.items()}, "lineage/parameters.json")

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self) -> None:
        """Stop sampling the machine before the run is closed."""
        self._stop_monitor()

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self) -> None:
        """Stop sampling the machine before the run is closed."""
        self._stop_monitor()

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Log a data set that a node read as an input of the MLflow run, with its digest."""
        self._log_input(dataset_name, data, "input")

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        """Log figures and plots; data sets are logged when they are read."""
        import mlflow

        if not mlflow.active_run():
            return
        if hasattr(data, "savefig"):
            mlflow.log_figure(data, f"plots/{dataset_name}.png")

    def _log_input(self, name: str, data: Any, context: str) -> None:
        import mlflow

        folder = getattr(data, "folder", None)
        if folder is None or name in self._recorded or not mlflow.active_run():
            return
        from luthier.lineage import FolderInput

        self._recorded.add(name)
        mlflow.log_input(FolderInput(name, folder, data.sha256), context=context)
        mlflow.set_tag(f"luthier.data.{name}", f"{folder.parent.name} sha256:{data.sha256}")


class SummaryHooks:
    """Closes a run with a table for the terminal."""

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Print base against tuned, and what to do next, if the run evaluated a model."""
        if "evaluation" in pipeline.outputs() | pipeline.datasets() and catalog.exists("evaluation"):
            from luthier.summary import print_summary

            dataset = catalog.get("evaluation_report")
            version = dataset.resolve_load_version()
            report = dataset._filepath / version / dataset._filepath.name
            protocol = getattr(dataset, "_protocol", "file")
            if protocol != "file":
                report = f"{protocol}://{report}"
            print_summary(catalog.load("evaluation"), f"the report   {report}")
