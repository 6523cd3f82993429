"""Datasets of our own: versioned folders that are whole or not there."""

from luthier.datasets.folders import ModelDirectoryDataset, ShardsDataset

__all__ = ["ModelDirectoryDataset", "ShardsDataset"]
