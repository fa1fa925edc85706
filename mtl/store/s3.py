"""Any server that speaks S3, through boto3 and its standard environment (AWS_ENDPOINT_URL, AWS_PROFILE, roles ...)."""

import random
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, final

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError

from mtl.errors import Conflict, NotFound, StoreError
from mtl.store.base import PerProcess, Stat, Unfinished, check_key, check_prefix, check_range
from mtl.store.fetch import Fetcher, Range
from mtl.store.patience import Patience
from mtl.store.s3_connection import ATTEMPTS, Connection
from mtl.store.s3_errors import code_of, told
from mtl.store.traffic import Traffic

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LOST = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey")


@final
class _Process:
    """What one process reads and writes with, shared by a store and its children."""

    def __init__(self, patience: Patience) -> None:
        self.connection = Connection()
        self.fetcher = Fetcher(self.connection, patience, random.Random())


def _version(answer: dict[str, Any]) -> str:
    # Without its quotes: for If-Match on a write, Ceph takes them for a part of the tag, and AWS takes both forms.
    return str(answer["ETag"]).strip('"')


@contextmanager
def _unless_ended() -> Generator[None]:
    """Do something with a multipart upload, and nothing if that was completed or aborted before."""
    try:
        yield
    except ClientError as error:
        if code_of(error) != "NoSuchUpload":
            raise


@final
@dataclass(frozen=True)
class S3Store:
    """The objects of `bucket` whose keys start with `prefix` and a slash, or all where it is empty.

    Ranges, which training lives on, are read with `patience`; all else goes through boto3, which tries twice. A version
    is the ETag. A writer that is killed leaves the old object, and where `put_file` was under way perhaps a multipart
    upload that costs money and that no listing of objects shows: `unfinished` finds it.
    """

    bucket: str
    prefix: str
    _process: PerProcess[_Process] = field(compare=False, repr=False)

    @classmethod
    def at(cls, uri: str, patience: Patience = Patience()) -> Self:  # noqa: B008 (it is frozen)
        """The store at s3://bucket/prefix.

        Raises:
            StoreError: the name of the bucket is not one, or the prefix has a part that is empty, '.' or '..'.
        """
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if _BUCKET.fullmatch(bucket) is None:
            raise StoreError(
                f"'{bucket}' can not be the name of a bucket.",
                got=uri,
                expected="s3://bucket/prefix, the bucket 3 to 63 lower-case letters, digits, '-' and '.'",
            )
        prefix = prefix.rstrip("/")
        return cls(bucket, prefix and check_key(f"s3://{bucket}", prefix), PerProcess(partial(_Process, patience)))

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def child(self, name: str) -> "S3Store":
        return S3Store(self.bucket, self._key(name), self._process)

    def get(self, key: str) -> bytes:
        return self.get_versioned(key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        with self._telling(key) as client:
            return self._fetch(client, key)

    def get_range(self, key: str, offset: int, length: int, *, version: str | None = None) -> memoryview:
        return self._range(key, offset, length, version)[0]

    def get_range_versioned(self, key: str, offset: int, length: int) -> tuple[memoryview, str]:
        return self._range(key, offset, length, None)

    def traffic(self) -> Traffic:
        return self._process.get().fetcher.traffic()

    def stat(self, key: str) -> Stat:
        with self._telling(key) as client:
            answer = client.head_object(Bucket=self.bucket, Key=self._key(key))
            return Stat(answer["ContentLength"], _version(answer), answer["LastModified"].timestamp())

    def list(self, prefix: str = "") -> list[str]:
        return list(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        top = self._top
        found: dict[str, int] = {}
        more: dict[str, str] = {}
        with self._telling(prefix) as client:
            while True:
                page = client.list_objects_v2(Bucket=self.bucket, Prefix=top + check_prefix(self.uri, prefix), **more)
                # A key that ends in a slash is a console's stand-in for a folder.
                items = (item for item in page.get("Contents", []) if not item["Key"].endswith("/"))
                found |= {item["Key"].removeprefix(top): item["Size"] for item in items}
                if not page["IsTruncated"]:
                    return dict(sorted(found.items()))
                more = {"ContinuationToken": page["NextContinuationToken"]}

    def put(self, key: str, data: bytes) -> str:
        with self._telling(key) as client:
            return _version(client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data))

    def put_file(self, key: str, path: Path) -> None:
        with self._telling(key) as client:
            try:
                client.upload_file(Bucket=self.bucket, Key=self._key(key), Filename=str(path))
            except S3UploadFailedError as error:
                raise error.__context__ or error from None

    def put_if(self, key: str, data: bytes, *, version: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        with self._telling(key) as client:
            try:
                return _version(client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **condition))
            except ClientError as error:
                if code_of(error) not in _LOST:
                    raise
                refusal = error
        try:
            held, now = self.get_versioned(key)
        except NotFound:
            held, now = None, "no object"
        # boto3 repeats a write whose answer was lost; the repetition then meets the first try's success.
        if held == data:
            return now
        raise Conflict(
            f"{self.uri}/{key} was changed by another writer.",
            got=now if held is None else f"version {now}",
            expected="no object" if version is None else f"version {version}",
        ) from refusal

    def delete(self, key: str) -> None:
        with self._telling(key) as client:
            client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def unfinished(self) -> Sequence[Unfinished]:
        with self._telling("") as client:
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self._top)
            found = [self._begun(client, upload) for page in pages for upload in page.get("Uploads", [])]
        return [upload for upload in found if upload is not None]

    def discard(self, unfinished: Unfinished) -> None:
        with self._telling(unfinished.key) as client, _unless_ended():
            client.abort_multipart_upload(Bucket=self.bucket, Key=self._key(unfinished.key), UploadId=unfinished.upload)

    @property
    def _top(self) -> str:
        """What the names of this store's objects have before their keys."""
        return f"{self.prefix}/" if self.prefix else ""

    def _begun(self, client: Any, upload: dict[str, Any]) -> Unfinished | None:
        """What there is of a multipart upload, None if it has ended meanwhile."""
        name, number = upload["Key"], upload["UploadId"]
        with _unless_ended():
            pages = client.get_paginator("list_parts").paginate(Bucket=self.bucket, Key=name, UploadId=number)
            parts = [part for page in pages for part in page.get("Parts", [])]
            written = max([upload["Initiated"], *(part["LastModified"] for part in parts)])
            size_bytes = sum(part["Size"] for part in parts)
            return Unfinished(name.removeprefix(self._top), size_bytes, written.timestamp(), number)
        return None

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{check_key(self.uri, key)}".lstrip("/")

    @contextmanager
    def _telling(self, key: str) -> Generator[Any]:
        """The client; what it raises inside leaves as one of our errors, about `key`."""
        connection = None
        try:
            connection = self._process.get().connection
            yield connection.client
        except (ClientError, BotoCoreError) as error:
            raise told(error, self.bucket, f"{self.prefix}/{key}".strip("/"), connection) from error

    def _range(self, key: str, offset: int, length: int, version: str | None) -> tuple[memoryview, str]:
        check_range(f"{self.uri}/{key}", offset, length)
        with self._telling(key):
            return self._process.get().fetcher.read(Range(self.bucket, self._key(key), offset, length), version)

    def _fetch(self, client: Any, key: str, **only: str) -> tuple[bytes, str]:
        """The body of a GET and its version. boto3 repeats what fails before the body, this what fails within."""
        for attempt in range(1, ATTEMPTS + 1):
            answer = client.get_object(Bucket=self.bucket, Key=self._key(key), **only)
            try:
                return answer["Body"].read(), _version(answer)
            except (HTTPClientError, IncompleteReadError):
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError
