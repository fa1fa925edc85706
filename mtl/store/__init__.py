"""Storage behind one small interface: local folders, S3, and other clouds for reading.

base.py    Store, Stat, Unfinished: the interface; what keys may look like
local.py   LocalStore: a folder of this machine or a mounted file system; atomic, durable writes
s3.py      S3Store: any server that speaks S3; its ranged reads are fetch.py (tries, resumption), wire.py (HTTP),
           patience.py (deadlines, retry budget), throttle.py, hedging.py
arrow.py   ArrowStore: gs://, abfs://, hdfs://, for data sets only
"""

import re

from mtl.errors import StoreError
from mtl.store.base import Stat, Store, Unfinished
from mtl.store.local import LocalStore
from mtl.store.traffic import Traffic

__all__ = ["LocalStore", "Stat", "Store", "Traffic", "Unfinished", "open_store"]

_SUPPORTED = "a path, file:///path, s3://bucket/prefix; for data sets also gs://, abfs://, abfss://, hdfs://"
_ARROW_SCHEMES = ("gs", "abfs", "abfss", "hdfs")


def open_store(uri: str) -> Store:
    """The store at `uri`: a local path, file://, s3://, or what pyarrow can read. Touches neither disk nor network.

    Raises:
        StoreError: the address is empty or malformed, or its scheme is not supported.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", uri)
    if uri and scheme is None:
        return LocalStore.at(uri)
    name = scheme[1] if scheme else ""
    if uri.startswith("file://"):
        return LocalStore.at(uri)
    # Imported where it is used: a quarter of the time until the first line, which a local folder need not wait for.
    if uri.startswith("s3://"):
        from mtl.store.s3 import S3Store

        return S3Store.at(uri)
    if name in _ARROW_SCHEMES and uri.startswith(f"{name}://"):
        from mtl.store.arrow import ArrowStore

        return ArrowStore(uri.rstrip("/"))
    raise StoreError(
        f"No storage is known for the address '{uri}'.",
        got=uri or "an empty address",
        expected=_SUPPORTED,
        do="correct the address, or copy the data to one of these",
    )
