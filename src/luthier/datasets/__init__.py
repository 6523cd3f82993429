"""Datasets of our own: versioned folders that are whole or not there, and what they must hold."""

from luthier.datasets.contract import RecordContract
from luthier.datasets.folders import ModelDirectoryDataset, PackageDataset, ShardsDataset

__all__ = ["ModelDirectoryDataset", "PackageDataset", "RecordContract", "ShardsDataset"]
