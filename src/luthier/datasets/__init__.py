"""Datasets of our own: versioned folders that are whole or not there, what they must hold, and the request log."""

from luthier.datasets.contract import RecordContract
from luthier.datasets.folders import ModelDirectoryDataset, PackageDataset, ShardsDataset
from luthier.datasets.request_log import RequestLogDataset

__all__ = ["ModelDirectoryDataset", "PackageDataset", "RecordContract", "RequestLogDataset", "ShardsDataset"]
