"""Metrics as sums that are reduced once: exact for any split of a data set over batches and workers.

counts.py, numbers.py and calibration.py turn sums into metrics; ranking.py needs all scores at once, which mtl/tally.py
gathers.
"""

from mtl.metrics.calibration import calibration_error, calibration_sums
from mtl.metrics.counts import (
    binary,
    confusion,
    entry_sums,
    multiclass,
    multiclass_each,
    multilabel,
    multilabel_each,
    ordinal,
    severity,
    top,
)
from mtl.metrics.gain import delta_m
from mtl.metrics.numbers import angular, angular_sums, regression, regression_each, regression_sums
from mtl.metrics.ranking import auroc, average_precision

__all__ = [
    "angular",
    "angular_sums",
    "auroc",
    "average_precision",
    "binary",
    "calibration_error",
    "calibration_sums",
    "confusion",
    "delta_m",
    "entry_sums",
    "multiclass",
    "multiclass_each",
    "multilabel",
    "multilabel_each",
    "ordinal",
    "regression",
    "regression_each",
    "regression_sums",
    "severity",
    "top",
]
