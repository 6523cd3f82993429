"""From raw rows to tokenised examples."""

from luthier.pipelines.data_processing.pipeline import create_pipeline

__all__ = ["create_pipeline"]
