"""Reading a data set through a proxy that spoils answers: the same bytes, each row once, or an error that says why.

On a simulated server, or on the real one at AWS_ENDPOINT_URL.
"""

import gc
import itertools
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from mtl.data.manifest import Index
from mtl.data.reader import Reader, RowGroup
from mtl.errors import AccessDenied, DataError, NotFound, StoreError
from mtl.store.patience import Patience
from mtl.store.s3 import S3Store
from tests.helpers.datasets import LABELS, tiny
from tests.helpers.fault_proxy import ROUGH, FaultProxy, Rule

PATIENCE = Patience(
    connect_s=2.0,
    answer_s=0.5,
    window_s=0.25,
    window_bytes=1_000,
    contact_s=1.0,
    total_s=20.0,
    backoff_s=0.002,
    backoff_most_s=0.02,
    retry_rate=500.0,
    retry_burst=100.0,
)
THREADS = 4
REAL = bool(os.environ.get("AWS_ENDPOINT_URL"))


@dataclass
class Case:
    """A data set on a server, and the index of its training split."""

    upstream: str
    uri: str
    index: Index
    groups: list[RowGroup]

    def reader(self, patience: Patience = PATIENCE) -> Reader:
        """A reader of whatever AWS_ENDPOINT_URL names now."""
        return Reader(S3Store.at(self.uri, patience), self.index, tuple(LABELS))


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as env:
        server = None
        if not REAL:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                env.delenv(name)
            server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
            server.start()
            host, port = server.get_host_and_port()
            env.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            env.setenv("AWS_ACCESS_KEY_ID", "access-of-this-test")
            env.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
            env.setenv("AWS_DEFAULT_REGION", "us-east-1")
            env.setenv("AWS_EC2_METADATA_DISABLED", "true")
        bucket = f"mtl-faults-{uuid.uuid4().hex}"
        client = boto3.Session().client("s3")
        client.create_bucket(Bucket=bucket)
        uri = f"s3://{bucket}/some data"
        tiny(S3Store.at(uri), rows={"train": 80})
        case = Case(os.environ["AWS_ENDPOINT_URL"], uri, Index.load(S3Store.at(uri), "train"), [])
        case.groups = read_all(case.reader())
        assert len(case.index.shard_path) > 1
        assert len(case.groups) > 8
        yield case
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=item["Key"])
        client.delete_bucket(Bucket=bucket)
        client.close()
        if server is not None:
            server.stop()


@pytest.fixture
def proxied(case: Case, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FaultProxy]]:
    """Start a proxy with the given rules, which AWS_ENDPOINT_URL then names."""
    started: list[FaultProxy] = []

    def start(*rules: Rule, seed: int = 0) -> FaultProxy:
        proxy = FaultProxy(case.upstream, rules, seed)
        started.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return proxy.__enter__()

    yield start
    for proxy in started:
        proxy.__exit__(None, None, None)


def read_all(reader: Reader, threads: int = THREADS) -> list[RowGroup]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(reader.read, range(len(reader.index.rows))))


def assert_same(groups: list[RowGroup], expected: list[RowGroup]) -> None:
    """Every row, once, in its place, to the byte."""
    assert [group.number for group in groups] == [group.number for group in expected]
    for group, wanted in zip(groups, expected, strict=True):
        np.testing.assert_array_equal(group.ids, wanted.ids)
        np.testing.assert_array_equal(group.first, wanted.first)
        np.testing.assert_array_equal(group.stop, wanted.stop)
        assert group.data == wanted.data
        for name, values in wanted.labels.items():
            np.testing.assert_array_equal(group.labels[name], values)
    assert len(np.unique(np.concatenate([group.ids for group in groups]))) == sum(len(group.ids) for group in expected)


@pytest.mark.parametrize(
    "rule",
    [
        Rule("slow_down", times=2),
        Rule("error", times=2),
        Rule("reset", times=2),
        Rule("reset_inside", times=1),
        Rule("truncated", times=1),
        Rule("short", times=1),
        Rule("stalled", share=0.3, times=1),
        Rule("trickle", share=0.3, times=1),
        Rule("late", share=0.5, times=1, seconds=1.0),
        Rule("corrupt", times=1),
    ],
    ids=lambda rule: rule.fault,
)
def test_what_passes_is_read_again(case: Case, proxied: Callable[..., FaultProxy], rule: Rule) -> None:
    proxy = proxied(rule)
    reader = case.reader()
    assert_same(read_all(reader), case.groups)
    stats = reader.stats()
    assert proxy.hits[rule.fault] > 0
    again = stats.rereads if rule.fault == "corrupt" else stats.retries
    assert again + stats.hedges >= proxy.hits[rule.fault]
    assert (stats.throttles > 0) == (rule.fault == "slow_down")
    assert stats.requests == len(proxy.requests) - sum("manifest" in line for line in proxy.requests)
    assert stats.storage_s > 0
    assert stats.parse_s > 0


def test_without_faults_a_row_group_is_one_request(case: Case, proxied: Callable[..., FaultProxy]) -> None:
    proxy = proxied()
    reader = case.reader(replace(PATIENCE, hedge_share=0))  # a busy machine is slow enough for a second request
    assert_same(read_all(reader), case.groups)
    before = reader.stats()
    assert before.bytes == case.index.length.sum() + sum(
        case.index.footer_length[shard] for shard in range(len(case.index.shard_path))
    )
    assert before.requests == len(proxy.requests) == len(case.groups) + len(case.index.shard_path)
    assert (before.retries, before.rereads, before.throttles) == (0, 0, 0)
    assert proxy.connections <= THREADS
    reader.read(0)
    after = reader.stats().since(before)
    assert (after.requests, after.bytes) == (1, case.index.length[0])


def test_many_faults_at_once(case: Case, proxied: Callable[..., FaultProxy]) -> None:
    rules = [replace(rule, share=30 * rule.share, seconds=0.8) for rule in ROUGH]
    proxy = proxied(*rules, seed=3)
    reader = case.reader()
    for _ in range(3):
        assert_same(read_all(reader, threads=8), case.groups)
    assert len(proxy.hits) == len(ROUGH)


def test_a_break_is_resumed_where_it_happened(case: Case, proxied: Callable[..., FaultProxy]) -> None:
    proxy = proxied(Rule("truncated", times=1))
    assert_same([case.reader().read(0)], case.groups[:1])
    start, length = int(case.index.offset[0]), int(case.index.length[0])
    starts = [int(line.partition("bytes=")[2].partition("-")[0]) for line in proxy.requests if ".parquet" in line]
    left = [length - (at - start) for at in starts]
    assert left[0] == length
    assert all(after == before - before // 2 or after == before for before, after in itertools.pairwise(left))
    assert left[-1] < 3


@pytest.mark.parametrize(("fault", "kind"), [("expired", AccessDenied), ("missing", NotFound)])
def test_what_does_not_pass_is_told_at_once(
    case: Case, proxied: Callable[..., FaultProxy], fault: str, kind: type[StoreError]
) -> None:
    proxy = proxied(Rule(fault))
    with pytest.raises(kind) as caught:
        case.reader().read(0)
    bucket, _, prefix = case.uri.removeprefix("s3://").partition("/")
    assert len(proxy.requests) == 1
    message = str(caught.value)
    for part in (bucket, f"{prefix}/{case.index.shard_path[0]}", proxy.url):
        assert part in message
    if kind is AccessDenied:
        assert f"access key {os.environ['AWS_ACCESS_KEY_ID']}" in message
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in message
    assert "Signature" not in message


@pytest.mark.skipif(REAL, reason="invents identities, which the real server refuses")
def test_expired_credentials_are_looked_for_anew(
    case: Case, proxied: Callable[..., FaultProxy], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy = proxied(Rule("expired", credentials="old"))
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = x\n")
    reader = case.reader()
    with pytest.raises(AccessDenied, match="access key old"):
        reader.read(0)
    file.write_text("[default]\naws_access_key_id = new\naws_secret_access_key = x\n")
    assert_same(read_all(reader), case.groups)
    assert proxy.hits["expired"] <= 1 + THREADS


def test_a_shard_rewritten_meanwhile_is_an_error_that_names_it(case: Case, proxied: Callable[..., FaultProxy]) -> None:
    proxied()
    reader, store = case.reader(), S3Store.at(case.uri)
    reader.read(0)
    path = case.index.shard_path[0]
    content = store.get(path)
    store.put(path, content[::-1])
    try:
        with pytest.raises(StoreError, match=rf"{path} was rewritten"):
            reader.read(1)
    finally:
        store.put(path, content)
    reader.read(1)


def test_the_answer_says_whether_the_shard_was_rewritten(case: Case, proxied: Callable[..., FaultProxy]) -> None:
    """Also in the middle of one row group, whose first half is of the old shard."""
    proxy = proxied(Rule("rewritten"))
    reader = case.reader()
    reader.read(0)
    with pytest.raises(StoreError, match="was rewritten"):
        reader.read(1)
    proxy.rules = [Rule("truncated", times=1, match=".*parquet"), Rule("rewritten")]
    with pytest.raises(StoreError, match="was rewritten"):
        case.reader().read(2)


def test_bytes_that_stay_wrong_are_an_error(case: Case, proxied: Callable[..., FaultProxy]) -> None:
    proxy = proxied(Rule("corrupt"))
    with pytest.raises(DataError, match=r"(?s)is not what was written.*twice") as caught:
        case.reader().read(0)
    assert case.index.shard_path[0] in str(caught.value)
    assert len(proxy.requests) == 2


def test_an_outage_ends_in_an_error_and_is_not_answered_with_more_load(
    case: Case, proxied: Callable[..., FaultProxy]
) -> None:
    proxy = proxied()
    patience = replace(PATIENCE, total_s=0.8, retry_rate=10.0, retry_burst=5.0)
    reader = case.reader(patience)
    reader.read(0)
    done = len(proxy.requests)
    proxy.rules = [Rule("slow_down")]
    errors: list[str] = []
    with ThreadPoolExecutor(8) as pool:
        for read in [pool.submit(reader.read, number) for number in range(8)]:
            with pytest.raises(StoreError, match="can not be read now") as caught:
                read.result()
            errors.append(str(caught.value))
    assert all("SlowDown" in error and "failures in" in error and case.uri in error for error in errors)
    retries = len(proxy.requests) - done - 8
    assert retries == reader.stats().retries
    assert 0 < retries <= 5 + 10 * 2  # over the first read's 0.8 s and the last one's
    proxy.rules = []
    assert_same(read_all(reader), case.groups)


def test_an_outage_that_ends_is_outlived(case: Case, proxied: Callable[..., FaultProxy]) -> None:
    proxy = proxied()
    reader = case.reader()
    reader.read(0)
    proxy.rules = [Rule("reset")]
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(reader.read, number) for number in range(len(case.groups))]
        while proxy.hits["reset"] < 30:
            assert not any(read.done() for read in reads)
        proxy.rules = []
        assert_same([read.result() for read in reads], case.groups)


def test_a_server_that_never_answered_is_given_up_soon(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(StoreError, match=rf"(?s)connection to http://127\.0\.0\.1:{port} failed.*check AWS_ENDPOINT"):
        case.reader(replace(PATIENCE, contact_s=0.2, total_s=1000.0)).read(0)


def test_nothing_is_left_open(case: Case, proxied: Callable[..., FaultProxy]) -> None:
    proxied(*(Rule(fault, share=0.2, seconds=0.6) for fault in ("reset", "reset_inside", "truncated", "late", "error")))
    reader = case.reader()
    read_all(reader)  # boto3 and this process now have what they keep
    del reader
    gc.collect()
    threads, files = threading.active_count(), _sockets_of_this_process()
    for _ in range(3):
        reader = case.reader()
        read_all(reader, threads=8)
        del reader
        gc.collect()
    # A handler of the proxy lives on until it has seen its connection end.
    assert _settles(lambda: threading.active_count() <= threads)
    assert _settles(lambda: _sockets_of_this_process() <= files)


def _sockets_of_this_process() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            continue
    return count


def _settles(holds: Callable[[], bool]) -> bool:
    for _ in range(200):
        if holds():
            return True
        threading.Event().wait(0.02)
    return False
