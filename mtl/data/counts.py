"""What a shard holds of a label: how many values, over what range, how many of each class."""

from collections.abc import Sequence

import numpy as np

from mtl.data.labels import Value
from mtl.data.manifest import Label, LabelCount


def count(label: Label, values: Sequence[Value]) -> LabelCount:
    """The counts of one label over some rows."""
    singles = [value for value in values if isinstance(value, int | float)]
    lists = [value for value in values if isinstance(value, tuple)]
    valid = len(singles) + len(lists)
    made = LabelCount(valid=valid, nulls=len(values) - valid)
    width = len(label.classes or ())
    if label.kind in ("class", "binary"):
        ids = np.array(singles, np.int64)
        histogram = np.bincount(ids, minlength=width or 2)
        made = made.model_copy(update={"histogram": tuple(histogram.tolist())})
    if label.kind == "set":
        ids = np.array([i for value in lists for i in value], np.int64)
        present, unknown = np.bincount(ids[ids >= 0], minlength=width), np.bincount(-1 - ids[ids < 0], minlength=width)
        known = valid - unknown
        return made.model_copy(update={"histogram": tuple(present.tolist()), "known": tuple(known.tolist())})
    if label.kind == "vector":
        columns = [[value[at] for value in lists if not np.isnan(value[at])] for at in range(width)]
        return made.model_copy(
            update={
                "known": tuple(len(column) for column in columns),
                "lows": tuple(min(column, default=None) for column in columns),
                "highs": tuple(max(column, default=None) for column in columns),
            }
        )
    if label.kind == "soft":
        return made
    return made.model_copy(update={"low": min(singles, default=None), "high": max(singles, default=None)})
