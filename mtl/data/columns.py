"""Label columns of a row group as arrays."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtl.errors import DataError

LabelArray: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float32]


def array(column: pa.ChunkedArray, width: int | None) -> LabelArray:
    """The labels of n rows.

    Args:
        column: whole or real numbers, or lists of them; null where a label is missing.
        width: entries of a label, if it is a list.

    Returns:
        int64 [n] with -1 for missing, or float32 [n] with NaN. Lists of class ids become int64 [n, width] of 1
        (present), 0 (absent) and -1 (unknown: id c is stored as -1 - c), lists of reals float32 [n, width].

    Raises:
        DataError: the column holds lists where none are expected, the other way round, or lists of another length.
    """
    listed = pa.types.is_list(column.type)
    if listed != (width is not None):
        raise DataError(
            "A label column is not of the kind that the manifest says.",
            got=f"values of type {column.type}",
            expected=f"lists of {width}" if width is not None else "single values",
            do="write the data set again with jobs/prepare.py --overwrite",
        )
    if width is not None:
        return _lists(column, width)
    if pa.types.is_floating(column.type):
        return column.cast(pa.float32()).fill_null(float("nan")).to_numpy()
    return column.cast(pa.int64()).fill_null(-1).to_numpy()


def _lists(column: pa.ChunkedArray, width: int) -> LabelArray:
    whole = column.combine_chunks()
    lists = whole if isinstance(whole, pa.ListArray) else pa.concat_arrays(whole.chunks)
    there = np.asarray(lists.is_valid())
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values = lists.flatten()
    if pa.types.is_integer(values.type):
        ids = values.to_numpy(zero_copy_only=False).astype(np.int64)
        place = np.where(ids < 0, -1 - ids, ids)
        if len(place) and place.max() >= width:
            raise _wrong_size(f"class {place.max()}", f"fewer than {width} classes")
        found = np.where(there[:, None], np.zeros((1, width), np.int64), -1)
        found[np.repeat(np.arange(len(lengths)), lengths), place] = np.where(ids < 0, -1, 1)
        return found
    if (lengths[there] != width).any():
        raise _wrong_size(f"{lengths[there].tolist()[:8]}", f"{width} numbers in each")
    numbers = np.full((len(lengths), width), np.nan, np.float32)
    numbers[there] = values.to_numpy(zero_copy_only=False).reshape(-1, width)
    return numbers


def _wrong_size(got: str, expected: str) -> DataError:
    return DataError(
        "A label column holds lists of another size than the manifest says.",
        got=got,
        expected=expected,
        do="write the data set again with jobs/prepare.py --overwrite",
    )
