"""The store on a real S3 server."""

import pytest

from mtl.errors import AccessDenied, NotFound, StoreError
from mtl.store import Store, open_store
from tests.helpers.store_contract import StoreContract

pytestmark = pytest.mark.s3


@pytest.fixture
def store(s3: str) -> Store:
    return open_store(f"{s3}/runs/first one")


class TestContract(StoreContract):
    pass


def test_bucket_without_prefix(s3: str) -> None:
    store = open_store(s3)
    store.put("key", b"data")
    assert store.uri == s3
    assert store.list() == ["key"]
    assert store.child("folder").uri == f"{s3}/folder"


def test_missing_bucket_is_named(s3: str) -> None:
    store = open_store(f"{s3}-none/run")
    for call in (lambda: store.get("key"), store.list, lambda: store.put_if("key", b"", version=None)):
        with pytest.raises(NotFound, match=f"no bucket '{s3.removeprefix('s3://')}-none'"):
            call()


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_refused_identity_is_named(s3: str, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "canary-of-this-test")
    store = open_store(f"{s3}/run")
    for call in (lambda: store.get("key"), lambda: store.stat("key"), lambda: store.put("key", b"")):
        with pytest.raises(AccessDenied) as caught:
            call()
        message = str(caught.value)
        assert "run/key" in message
        assert s3.removeprefix("s3://") in message
        assert ("canary" in message) == (variable == "AWS_ACCESS_KEY_ID")


def test_endpoint_that_nobody_serves(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"The connection to http://127\.0\.0\.1:9 failed"):
        open_store(s3).list()
