"""The versions of one model and their aliases, as MLflow's model registry keeps them."""

import gc
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from luthier.registry.versions import Version, read_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


class Catalogue(Protocol):
    """One model in MLflow's registry. It knows nothing of the deployment log: aliases are what MLflow says."""

    def versions(self) -> list[Version]:
        """Return all versions, the newest first."""
        ...

    def version(self, number: int) -> Version | None:
        """Return the version of this number; None if there is none."""
        ...

    def aliases(self) -> dict[str, int]:
        """Return which version each alias points to."""
        ...


class ClientCatalogue:
    """One model as MLflow's client shows it, whatever store or server is behind."""

    def __init__(self, name: str, tracking_uri: str) -> None:
        """Name the model; nothing is opened before it is needed."""
        self.name = name
        self._tracking_uri = tracking_uri

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's client of the tracking server, made when it is first asked for."""
        # MLflow makes a million lasting objects as it is imported, through which the collector of garbage would go in vain
        # again and again: a quarter of the time of a whole rollback
        collecting = gc.isenabled()
        gc.disable()
        try:
            from mlflow import MlflowClient

            return MlflowClient(self._tracking_uri, self._tracking_uri)
        finally:
            gc.freeze()
            if collecting:
                gc.enable()

    def versions(self) -> list[Version]:
        """Return all versions, the newest first."""
        found: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = self.client.search_model_versions(f"name = '{self.name}'", order_by=["version_number DESC"], page_token=token)
            found += page
            token = page.token
            if not token:
                return [_version(entry) for entry in found]

    def version(self, number: int) -> Version | None:
        """Return the version of this number; None if there is none."""
        client = self.client  # before anything else imports MLflow, the slow way
        from mlflow.exceptions import MlflowException

        try:
            return _version(client.get_model_version(self.name, str(number)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def aliases(self) -> dict[str, int]:
        """Return which version each alias points to."""
        client = self.client
        from mlflow.exceptions import MlflowException

        try:
            # not from a search, whose versions have no aliases (mlflow#16734)
            found = client.get_registered_model(self.name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: int(number) for alias, number in found.items()}

    def set_aliases(self, wanted: Mapping[str, int | None]) -> None:
        """Point each alias to its version, one after another; None takes an alias away."""
        for alias, number in wanted.items():
            if number is None:
                self.client.delete_registered_model_alias(self.name, alias)
            else:
                self.client.set_registered_model_alias(self.name, alias, str(number))

    def create_model(self) -> None:
        """Make the model known, if it is not yet."""
        client = self.client
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def create_version(self, source: str, run_id: str, tags: dict[str, str]) -> int:
        """Make a version and return its number."""
        return int(self.client.create_model_version(self.name, source, run_id, tags).version)


def _version(entry: "ModelVersion") -> Version:
    return read_tags(int(entry.version), entry.tags, entry.run_id, entry.creation_timestamp, entry.source)
