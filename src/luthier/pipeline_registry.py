"""The project's pipelines and their parameters, by name."""

from kedro.pipeline import Pipeline
from pydantic import BaseModel

from luthier.configuration import DataParameters, FolderParameters, ModelParameters
from luthier.pipelines.data_processing import pipeline as data_processing
from luthier.pipelines.data_processing.parameters import DataProcessingParameters
from luthier.pipelines.deployment import pipeline as deployment
from luthier.pipelines.deployment.parameters import DeploymentParameters
from luthier.pipelines.evaluation import pipeline as evaluation
from luthier.pipelines.evaluation.parameters import EvaluationParameters
from luthier.pipelines.inference import pipeline as inference
from luthier.pipelines.inference.parameters import InferenceParameters
from luthier.pipelines.monitoring import pipeline as monitoring
from luthier.pipelines.monitoring.parameters import MonitoringParameters
from luthier.pipelines.training import pipeline as training
from luthier.pipelines.training.parameters import TrainingParameters
from luthier.serving.parameters import ServingParameters

PARAMETERS: dict[str, type[BaseModel]] = {
    "folders": FolderParameters,
    "model": ModelParameters,
    "data": DataParameters,
    "data_processing": DataProcessingParameters,
    "training": TrainingParameters,
    "evaluation": EvaluationParameters,
    "deployment": DeploymentParameters,
    "inference": InferenceParameters,
    "serving": ServingParameters,
    "monitoring": MonitoringParameters,
}


TOGETHER = ("data_processing", "training", "evaluation", "deployment")
"""The rooms that make a model, in the order in which they run: `kedro run` runs these."""


def register_pipelines() -> dict[str, Pipeline]:
    """Return each room, and those that make a model together.

    Nodes carry the name of their room as a tag: Kedro-Viz filters by it, and orchestrators group by it.
    """
    rooms = {
        "data_processing": data_processing.create_pipeline(),
        "training": training.create_pipeline(),
        "evaluation": evaluation.create_pipeline(),
        "deployment": deployment.create_pipeline(),
        "inference": inference.create_pipeline(),
        "monitoring": monitoring.create_pipeline(),
    }
    tagged = {name: Pipeline(room, tags=name) for name, room in rooms.items()}
    return {**tagged, "__default__": sum((tagged[name] for name in TOGETHER), Pipeline([]))}
