"""Values found in Parquet pages: what pyarrow decodes, or nothing at all."""

import io
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.data.plain import locate

VALUES = st.lists(st.binary(max_size=40), min_size=1, max_size=60)


def written(values: list[bytes | None], **options: object) -> tuple[memoryview, int]:
    """The pages of the only column of a new file, and how many values it has."""
    out = io.BytesIO()
    table = pa.table({"image": pa.array(values, pa.binary())})
    keywords = {"compression": "NONE", "use_dictionary": False, "write_statistics": False} | options
    pq.write_table(table, out, **keywords)
    column = pq.read_metadata(io.BytesIO(out.getvalue())).row_group(0).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    return memoryview(out.getvalue())[begin : begin + column.total_compressed_size], len(values)


def found(pages: memoryview, n: int) -> list[bytes] | None:
    at = locate(pages, n)
    return None if at is None else [bytes(pages[a : a + size]) for a, size in zip(*map(list, at), strict=True)]


@given(VALUES, st.sampled_from([1, 64, 2**20]), st.sampled_from([1, 7, 1024]), st.booleans())
def test_plain_pages(values: list[bytes], page_bytes: int, batch: int, statistics: bool) -> None:
    pages, n = written(
        list(values),
        data_page_size=page_bytes,
        write_batch_size=batch,
        write_statistics=statistics,
        write_page_index=True,
    )
    assert found(pages, n) == values


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"use_dictionary": True},
        {"data_page_version": "2.0"},
        {"column_encoding": "DELTA_BYTE_ARRAY"},
    ],
    ids=str,
)
def test_other_pages_are_left_to_pyarrow(options: dict[str, object]) -> None:
    assert found(*written([b"one", b"two", b"one"] * 30, **options)) is None


@given(VALUES, st.data())
def test_nulls_are_left_to_pyarrow(values: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(values)))
    assert found(*written([*values[:at], None, *values[at:]])) is None


@given(VALUES, st.data())
def test_damage_is_never_more_than_another_value(values: list[bytes], data: st.DataObject) -> None:
    pages, n = written(list(values))
    kind: Literal["cut", "flip", "count"] = data.draw(st.sampled_from(["cut", "flip", "count"]))
    if kind == "cut":
        assert found(pages[: data.draw(st.integers(0, len(pages) - 1))], n) is None
    elif kind == "count":
        assert found(pages, n + data.draw(st.integers(1, 3))) is None
        assert found(pages, n - 1) is None
    else:
        spoilt = bytearray(pages)
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        at = locate(memoryview(spoilt), n)
        assert at is None or all(a + size <= len(spoilt) for a, size in zip(*map(list, at), strict=True))
