"""From models to an honest comparison."""

from luthier.pipelines.evaluation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
