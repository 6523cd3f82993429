"""From examples to a fine-tuned model."""

from luthier.pipelines.training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
