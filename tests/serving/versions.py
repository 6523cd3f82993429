"""A registry with versions of the tiny model, and gateways in processes of their own."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from luthier.packages import check_package
from luthier.registry import Registry
from tests.pipelines.deployment.tiny_packages import make, random_adapter, tiny_base

VERSIONS = 3


@dataclass(frozen=True)
class Home:
    """A registry of one's own with `VERSIONS` versions, all of which passed the gate."""

    folder: Path
    within: Path | None = None
    """The project, if it is there already."""

    @property
    def project(self) -> Path:
        return self.within or self.folder / "project"

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def registry(self) -> Registry:
        return Registry("luthier", self.uri, cache=self.folder / "cache", check=check_package)


def build(folder: Path) -> Home:
    """Register the versions; each has other weights."""
    import mlflow

    home, base = Home(folder), tiny_base(folder)
    mlflow.set_tracking_uri(home.uri)
    experiment = mlflow.create_experiment("luthier", (folder / "artefacts").as_uri())
    for seed in range(VERSIONS):
        package = make(folder / f"package-{seed}", base, random_adapter(folder / f"tuned-{seed}", base, seed))
        with mlflow.start_run(experiment_id=experiment) as run:
            home.registry().register(package.folder, run.info.run_id, gate="pass", figures={"exact_match": 0.5})
    return home


def copied(home: Home, folder: Path) -> Home:
    """Return the same registry to change; the packages stay where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(home.folder / "mlflow.db", folder)
    return Home(folder)
