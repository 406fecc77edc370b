"""The settings of data sets."""

from bbdm.data.degradations import DegradeConfig
from bbdm.data.pairs import DATASETS, DIRECTIONS, ColumnsConfig, Direction

__all__ = ["DATASETS", "DIRECTIONS", "ColumnsConfig", "DegradeConfig", "Direction"]
