"""What happens around a run: parameters are checked first, lineage is recorded, and a summary closes it."""

import logging
import os
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from luthier.errors import UserError

logger = logging.getLogger(__name__)


class StorageHooks:
    """Sees to it that no data set is ever half there."""

    @hook_impl(tryfirst=True)
    def after_context_created(self) -> None:
        """Before there is any data set."""
        from luthier.datasets.whole_files import write_whole_files

        write_whole_files()


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
            told.append(f"{what}: {_made_by(maker, catalog.get(name))}")
        raise UserError("These inputs do not exist yet:\n  " + "\n  ".join(told))


def _made_by(maker: str | None, dataset: Any) -> str:
    if maker is not None:
        return f"made by `kedro run --pipeline {maker}`"
    written_by = (getattr(dataset, "metadata", None) or {}).get("written_by")
    return f"written by `{written_by}`" if written_by else "no pipeline makes it"


def _resolved(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return all parameters with their defaults: Kedro resolves the blocks that the nodes of a run ask for, and no others."""
    from luthier.pipeline_registry import PARAMETERS

    known = {name: block for name, block in parameters.items() if name in PARAMETERS and isinstance(block, dict)}
    return parameters | {name: PARAMETERS[name].model_validate(block) for name, block in known.items()}


def _facts(root: Path, run_params: dict[str, Any], catalog: DataCatalog, run: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a run does and from what, with what was done in the same MLflow run before, and all parameters.

    Raises:
        UserError: if that could not have been one run.
    """
    import mlflow

    from luthier.chain import read_artefact
    from luthier.lineage import RUN_FACTS, commit, local_changes, run_facts, sessions_of
    from luthier.pipeline_registry import TOGETHER
    from luthier.shared_run import continued

    parameters = _resolved(catalog.load("parameters") if "parameters" in catalog else {})
    facts = run_facts(run_params, parameters, commit(root), local_changes(root))
    if sessions_of(run.data.tags) and (earlier := read_artefact(run.info.run_id, RUN_FACTS, mlflow.MlflowClient())):
        facts = continued(facts, earlier, TOGETHER, run.info.status == "FINISHED")
    return facts, parameters


class SharedRunHooks:
    """Goes on with the run that MLFLOW_RUN_ID names, if both could be one run; before kedro-mlflow opens it."""

    def __init__(self) -> None:
        """Start without a project."""
        self._context: Any = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Remember the project; kedro-mlflow lays its settings beside it."""
        self._context = context

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, run_params: dict[str, Any], catalog: DataCatalog) -> None:
        """See that the run can be gone on with.

        Raises:
            UserError: if not.
        """
        from luthier.shared_run import VARIABLE, begun

        if VARIABLE in os.environ and (run := begun(os.environ, self._context.mlflow.tracking.experiment.name)):
            _facts(Path(self._context.project_path), run_params, catalog, run)


class LineageHooks:
    """Records in MLflow what a run stood on: commit, local changes, parameters, and the exact versions of its data."""

    def __init__(self) -> None:
        """Start with nothing recorded."""
        self._recorded: set[str] = set()
        self._root = Path()
        self._catalog: DataCatalog | None = None
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

        from luthier.lineage import RUN_FACTS, SESSION, environment, flatten, local_changes, sessions_of

        self._recorded, self._catalog = set(), catalog
        run = mlflow.active_run()
        if not run:
            return
        facts, parameters = _facts(self._root, run_params, catalog, run)
        before, changes = sessions_of(run.data.tags), local_changes(self._root)
        mlflow.set_tags(
            {
                "luthier.git_commit": facts["commit"],
                "luthier.git_dirty": str(bool(changes)),
                SESSION: " ".join([*before, str(run_params["run_id"])]),
                **environment(run_params),
            }
        )
        if before:
            mlflow.set_tag("mlflow.runName", ", ".join(facts["pipelines"]))
        if changes:
            mlflow.log_text(changes, "lineage/local_changes.diff")
        flat = flatten(parameters)
        mlflow.log_params({key: str(value)[:500] for key, value in flat.items()})
        # not enable_system_metrics_logging: kedro-mlflow opens the run anew for each node, with a new monitor each time
        self._monitor = SystemMetricsMonitor(mlflow.active_run().info.run_id, sampling_interval=5)
        self._monitor.start()
        mlflow.log_dict(facts, RUN_FACTS)

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
        """Log a data set that a node read as an input of the MLflow run, with its version and digest."""
        import mlflow

        from luthier.artefacts import MANIFEST
        from luthier.dvc import md5_known
        from luthier.lineage import DVC_TAG, FolderInput, named_version

        if dataset_name in self._recorded or not mlflow.active_run() or not (version := self._version_of(dataset_name)):
            return
        self._recorded.add(dataset_name)
        mlflow.set_tag(f"luthier.data.{dataset_name}", named_version(version, data))
        if hasattr(data, "folder"):
            mlflow.log_input(FolderInput(dataset_name, data.folder, data.sha256), context="input")
            # the manifest holds the hashes of all other files
            if md5 := md5_known(self._root, data.folder / MANIFEST):
                mlflow.set_tag(f"{DVC_TAG}{dataset_name}", md5)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        """Log what the run made: plots as they are, data sets by version and digest, source files by name."""
        import mlflow

        from luthier.dvc import with_md5
        from luthier.lineage import QUESTIONS, SOURCES, named_version

        if not mlflow.active_run():
            return
        if hasattr(data, "savefig"):
            mlflow.log_figure(data, f"plots/{dataset_name}.png")
        elif version := self._version_of(dataset_name):
            mlflow.set_tag(f"luthier.made.{dataset_name}", named_version(version, data))
        if dataset_name in ("sources", "inference_report"):  # the files that came from outside
            files, place = (data, SOURCES) if dataset_name == "sources" else (data["files"], QUESTIONS)
            mlflow.log_dict(with_md5(files, self._root), place)

    def _version_of(self, name: str) -> str | None:
        """Return the version of a data set that this run reads or writes; None if it has none."""
        dataset: Any = self._catalog.get(name) if self._catalog is not None and name in self._catalog else None
        if getattr(dataset, "_version", None) is None:
            return None
        return str(dataset.resolve_load_version())


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
            made = pipeline.outputs() | pipeline.datasets()
            gate, registered = (
                catalog.load(name) if name in made and catalog.exists(name) else None for name in ("gate_decision", "registered")
            )
            print_summary(catalog.load("evaluation"), f"the report   {report}", gate, registered)
