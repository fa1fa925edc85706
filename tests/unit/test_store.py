"""The store over local folders, a simulated S3, and pyarrow's file systems."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

from mtl.errors import AccessDenied, Conflict, MtlError, NotFound, StoreError
from mtl.store import LocalStore, Store, Unfinished, open_store
from mtl.store.arrow import ArrowStore
from mtl.store.patience import Patience
from mtl.store.s3 import S3Store
from tests.helpers.store_contract import LARGE_BYTES, StoreContract

SECRET = "canary-secret-of-this-test"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment whose only AWS setting is one identity."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access-of-this-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    return monkeypatch


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def moto(moto_url: str, aws: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a new bucket on a simulated server whose listings have three keys a page."""
    aws.setenv("AWS_ENDPOINT_URL", moto_url)
    aws.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    # moto checks a condition and writes in two steps; S3 does it in one.
    put_object, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_alone(self: S3Response) -> object:
        with one_at_a_time:
            return put_object(self)

    aws.setattr(S3Response, "put_object", put_alone)
    client = boto3.Session().client("s3")
    client.create_bucket(Bucket="runs")
    yield "s3://runs"
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="runs"):
        for item in page.get("Contents", []):
            client.delete_object(Bucket="runs", Key=item["Key"])
    client.delete_bucket(Bucket="runs")
    client.close()


class TestLocal(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(str(tmp_path / "new folder" / "run"))


class TestS3(StoreContract):
    counts = 5  # the simulation is slow, and not what these tests are after
    writes = 50

    @pytest.fixture
    def store(self, moto: str) -> Store:
        return open_store(f"{moto}/new folder/run")


class TestAddresses:
    @pytest.mark.parametrize(
        "uri", ["file:///data/a%20b", "/data/a b", "/data/x/../a b/", "file://localhost/data/a%20b/"]
    )
    def test_local(self, uri: str) -> None:
        assert open_store(uri) == LocalStore(Path("/data/a b"))
        assert open_store(uri).uri == "/data/a b"

    def test_local_is_made_absolute_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path / "me"))
        assert open_store("runs/a").uri == str(tmp_path / "runs/a")
        assert open_store("~/runs").uri == str(tmp_path / "me/runs")

    @pytest.mark.parametrize(
        ("uri", "bucket", "prefix", "shown"),
        [
            ("s3://runs", "runs", "", "s3://runs"),
            ("s3://runs/", "runs", "", "s3://runs"),
            ("s3://my.runs-1/a b/c#d?/", "my.runs-1", "a b/c#d?", "s3://my.runs-1/a b/c#d?"),
        ],
    )
    def test_s3(self, uri: str, bucket: str, prefix: str, shown: str) -> None:
        store = open_store(uri)
        assert isinstance(store, S3Store)
        assert (store.bucket, store.prefix, store.uri) == (bucket, prefix, shown)

    @pytest.mark.parametrize("uri", ["gs://bucket/a/", "abfs://container@account/a", "hdfs://host:8020/a"])
    def test_other_clouds(self, uri: str) -> None:
        assert open_store(uri) == ArrowStore(uri.rstrip("/"))

    @pytest.mark.parametrize("uri", ["", "ftp://host/a", "s3:/bucket/a", "S3://bucket", "gs:/bucket"])
    def test_unknown_address_lists_what_is_known(self, uri: str) -> None:
        with pytest.raises(StoreError, match=r"(?s)No storage is known.*s3://bucket/prefix.*gs://"):
            open_store(uri)

    @pytest.mark.parametrize("bucket", ["", "ab", "Runs", "my_runs", "-runs", "runs-", "a" * 64, "runs:x"])
    def test_bad_bucket(self, bucket: str) -> None:
        with pytest.raises(StoreError, match="can not be the name of a bucket"):
            open_store(f"s3://{bucket}/run")

    def test_prefix_that_leaves_the_bucket_folder(self) -> None:
        with pytest.raises(StoreError, match="does not name an object"):
            open_store("s3://runs/a/../b")

    def test_file_address_of_another_machine(self) -> None:
        with pytest.raises(StoreError, match="does not name a folder of this machine"):
            open_store("file://elsewhere/data")


class TestLocalFiles:
    def test_leaves_nothing_but_the_objects(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "run")
        store.put("a/b/c", b"1")
        store.put("a/d", b"2")
        assert {path.name for path in (tmp_path / "run").rglob("*")} == {"a", "b", "c", "d"}
        store.delete("a/b/c")
        assert {path.name for path in (tmp_path / "run").rglob("*")} == {"a", "d"}
        store.delete("a/d")
        assert list(tmp_path.rglob("*")) == [tmp_path / "run"]

    def test_deleting_and_writing_in_one_folder_do_not_meet(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)

        def write_and_delete(name: str) -> None:
            for _ in range(100):
                store.put(f"a/b/{name}", b"")
                store.delete(f"a/b/{name}")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write_and_delete, "abcd"))
        assert store.list() == []

    @pytest.mark.parametrize("size", [8, LARGE_BYTES])
    def test_change_in_place_by_another_program_is_noticed(self, tmp_path: Path, size: int) -> None:
        store = LocalStore(tmp_path)
        version = store.put("key", b"a" * size)
        (tmp_path / "key").write_bytes(b"b" * size)
        with pytest.raises(StoreError, match="rewritten"):
            store.get_range("key", 0, 1, version=version)

    def test_version_outlives_a_reused_inode_and_a_coarse_clock(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        seen: set[str] = set()
        for number in range(50):
            seen.add(store.put("key", bytes([number]) * LARGE_BYTES))
            store.delete("key")
        assert len(seen) == 50

    def test_our_own_files_are_not_keys(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        store.put_if("run.json", b"{}", version=None)
        (tmp_path / ".mtl-left-by-a-killed-writer").write_bytes(b"half")
        assert store.list() == ["run.json"]
        with pytest.raises(StoreError, match="reserved"):
            store.get(".mtl-lock")

    def test_of_our_own_files_only_half_written_ones_are_unfinished(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        assert list(LocalStore(tmp_path / "none").unfinished()) == []
        store.put_if("run.json", b"{}", version=None)
        (tmp_path / ".mtl-notes").touch()
        half = tmp_path / "a" / "b" / f".mtl-{'0a' * 16}"
        half.parent.mkdir(parents=True)
        half.write_bytes(b"half")
        (left,) = store.unfinished()
        assert left == Unfinished(f"a/b/{half.name}", 4, half.stat().st_mtime)
        store.discard(left)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".mtl-lock", ".mtl-notes", "run.json"]
        with pytest.raises(AssertionError):
            store.discard(Unfinished("run.json", 2, 0.0))

    def test_full_disk_keeps_the_old_content(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = LocalStore(tmp_path)
        store.put("key", b"old")

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="no space left"):
            store.put("key", b"new")
        assert store.get("key") == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["key"]

    def test_refusal_names_path_and_user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(AccessDenied, match=rf"(?s)key.*user id {os.getuid()}"):
            LocalStore(tmp_path).get("key")

    @pytest.mark.parametrize("key", ["folder", "folder/key/below"])
    def test_file_and_folder_of_one_name(self, tmp_path: Path, key: str) -> None:
        store = LocalStore(tmp_path)
        store.put("folder/key", b"")
        with pytest.raises(StoreError, match="file system failed"):
            store.put(key, b"")
        assert store.list() == ["folder/key"]


class TestS3Faults:
    def test_write_whose_answer_was_lost_is_ours(self, moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
        store, put_object, losses = open_store(moto), S3Response.put_object, [1]

        def lose_answer(self: S3Response) -> object:
            answer = put_object(self)
            return (500, {}, "") if losses and losses.pop() else answer

        monkeypatch.setattr(S3Response, "put_object", lose_answer)
        version = store.put_if("key", b"ours", version=None)
        assert not losses
        assert store.get_versioned("key") == (b"ours", version)

    def test_lost_answer_and_another_writer_is_a_conflict(self, moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
        store, put_object, losses = open_store(moto), S3Response.put_object, [1]

        def lose_request(self: S3Response) -> object:
            if losses and losses.pop():
                self.body = b"theirs"
                put_object(self)
                return 500, {}, ""
            return put_object(self)

        monkeypatch.setattr(S3Response, "put_object", lose_request)
        with pytest.raises(Conflict):
            store.put_if("key", b"ours", version=None)
        assert store.get("key") == b"theirs"

    def test_listing_of_several_pages(self, moto: str) -> None:
        store = open_store(moto)
        for key in "abcdefg":
            store.put(key, b"")
        assert store.list() == list("abcdefg")

    def test_folder_markers_of_a_console_are_not_keys(self, moto: str) -> None:
        client = boto3.Session().client("s3")
        client.put_object(Bucket="runs", Key="a/", Body=b"")
        client.put_object(Bucket="runs", Key="a/b/", Body=b"")
        client.close()
        store = open_store(f"{moto}/a")
        store.put("key", b"")
        assert store.list() == ["key"]

    def test_no_credentials(self, moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(AccessDenied, match=r"'runs'.*needs credentials"):
            open_store(moto).get("key")

    def test_profile_that_does_not_exist(self, moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(StoreError, match="nobody"):
            open_store(moto).get("key")

    def test_missing_bucket(self, moto: str) -> None:
        with pytest.raises(NotFound, match="no bucket 'runs-none'"):
            open_store(f"{moto}-none").list()

    def test_endpoint_that_nobody_serves(self, aws: pytest.MonkeyPatch) -> None:
        aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(StoreError, match=r"(?s)http://127\.0\.0\.1:9.*check AWS_ENDPOINT_URL"):
            open_store("s3://runs/a").put("key", b"")


class Scripted:
    """An HTTP server of prepared answers: status, S3's error code or a body, announced length. It repeats the last."""

    def __init__(self, aws: pytest.MonkeyPatch) -> None:
        self.answers: list[tuple[int, str, int | None]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                status, text, length = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
                body = text if status < 300 else f"<Error><Code>{text}</Code><Message>no</Message></Error>"
                self.send_response(status)
                self.send_header("Content-Length", str(length or len(body)))
                self.send_header("ETag", '"tag"')
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body.encode())

            do_GET = do_HEAD = do_PUT = answer

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{self.server.server_port}")

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def scripted(aws: pytest.MonkeyPatch) -> Iterator[Scripted]:
    server = Scripted(aws)
    yield server
    server.close()


class TestS3Answers:
    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (403, "AccessDenied"),
            (403, "InvalidAccessKeyId"),
            (403, "SignatureDoesNotMatch"),
            (403, "RequestTimeTooSkewed"),
            (400, "ExpiredToken"),
        ],
    )
    def test_refusal_names_bucket_key_and_identity(self, scripted: Scripted, status: int, code: str) -> None:
        store = open_store("s3://runs/a")
        for call in (lambda: store.get("key"), lambda: store.stat("key"), lambda: store.put("key", b"")):
            scripted.answers = [(status, code, None)]
            with pytest.raises(AccessDenied) as caught:
                call()
            message = str(caught.value)
            for part in ("'a/key'", "'runs'", "access-of-this-test", "s3:ListBucket"):
                assert part in message
            assert SECRET not in message

    def test_refused_listing(self, scripted: Scripted) -> None:
        scripted.answers = [(403, "AccessDenied", None)]
        with pytest.raises(AccessDenied, match="'a/b'"):
            open_store("s3://runs/a").list("b")

    def test_refused_upload(self, scripted: Scripted, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(b"data")
        scripted.answers = [(403, "AccessDenied", None)]
        with pytest.raises(AccessDenied, match="'a/key'"):
            open_store("s3://runs/a").put_file("key", tmp_path / "source")

    def test_concurrent_conditional_writes(self, scripted: Scripted) -> None:
        scripted.answers = [(409, "ConditionalRequestConflict", None), (404, "NoSuchKey", None)]
        with pytest.raises(Conflict):
            open_store("s3://runs/a").put_if("key", b"data", version=None)

    def test_passing_failure_is_asked_again(self, scripted: Scripted) -> None:
        scripted.answers = [(503, "SlowDown", None), (200, "data", None)]
        assert open_store("s3://runs/a").get("key") == b"data"

    def test_lasting_failure_is_told(self, scripted: Scripted) -> None:
        scripted.answers = [(503, "SlowDown", None)]
        with pytest.raises(StoreError, match=r"(?s)S3 failed at s3://runs/a/key.*SlowDown") as caught:
            open_store("s3://runs/a").get("key")
        assert type(caught.value) is StoreError

    def test_body_cut_short_is_asked_again(self, scripted: Scripted) -> None:
        scripted.answers = [(200, "da", 4), (200, "data", None)]
        assert open_store("s3://runs/a").get_versioned("key") == (b"data", "tag")

    def test_body_cut_short_twice_is_told(self, scripted: Scripted) -> None:
        scripted.answers = [(200, "da", 4)]
        with pytest.raises(StoreError, match=r"connection to .* failed at s3://runs/a/key"):
            open_store("s3://runs/a").get("key")

    def test_range_that_a_server_sends_from_another_start_is_dropped(self, scripted: Scripted) -> None:
        """It sends the first half, then, asked for the rest, the beginning again, then all."""
        scripted.answers = [(206, "da", 4), (206, "data", 4), (206, "data", 4)]
        assert open_store("s3://runs/a").get_range("key", 0, 4) == b"data"

    def test_whole_object_in_place_of_a_range_is_refused(self, scripted: Scripted) -> None:
        scripted.answers = [(200, "data and more", None)]
        with pytest.raises(StoreError, match="not the range which was asked for"):
            S3Store.at("s3://runs/a", Patience(total_s=0.2, backoff_s=0.01)).get_range("key", 0, 4)
        scripted.answers = [(200, "data", None)]
        assert open_store("s3://runs/a").get_range("key", 0, 4) == b"data"

    def test_range_with_fewer_bytes_than_asked(self, scripted: Scripted) -> None:
        scripted.answers = [(206, "da", None)]
        with pytest.raises(StoreError, match=r"(?s)ended inside the range.*2 bytes.*4 bytes from 0"):
            open_store("s3://runs/a").get_range("key", 0, 4)


class TestArrow:
    """On pyarrow's own view of a local folder, written by LocalStore."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path)

    @pytest.fixture
    def store(self, folder: LocalStore) -> ArrowStore:
        return ArrowStore(folder.root.as_uri())

    def test_reads(self, folder: LocalStore, store: ArrowStore) -> None:
        folder.put("a/b", b"0123456789")
        assert store.get("a/b") == b"0123456789"
        assert store.get_versioned("a/b") == (b"0123456789", store.stat("a/b").version)
        assert store.stat("a/b").size_bytes == 10
        assert store.get_range("a/b", 2, 3) == b"234"
        assert store.child("a").get_range("b", 9, 1, version=store.stat("a/b").version) == b"9"

    def test_compressed_names_are_not_decompressed(self, folder: LocalStore, store: ArrowStore) -> None:
        folder.put("a.gz", b"plain")
        assert store.get("a.gz") == b"plain"

    def test_list(self, folder: LocalStore, store: ArrowStore) -> None:
        keys = ["a/b", "a/c/d", "ab", "b"]
        for key in keys:
            folder.put(key, b"")
        assert store.list() == keys
        assert store.list("a") == ["a/b", "a/c/d", "ab"]
        assert store.list("a/") == ["a/b", "a/c/d"]
        assert store.list("none/") == []
        assert store.child("a").list("c/") == ["c/d"]

    def test_missing_object(self, folder: LocalStore, store: ArrowStore) -> None:
        folder.put("a/b", b"")
        for key in ("none", "none/none"):
            for read in (store.get, store.get_versioned, store.stat, lambda key: store.get_range(key, 0, 1)):
                with pytest.raises(NotFound, match=key):
                    read(key)
        with pytest.raises(NotFound, match="/a"):
            store.stat("a")

    @pytest.mark.parametrize(("offset", "length"), [(8, 3), (10, 1), (50, 1)])
    def test_range_beyond_the_end(self, folder: LocalStore, store: ArrowStore, offset: int, length: int) -> None:
        folder.put("key", b"0123456789")
        with pytest.raises(StoreError, match="ended inside the range"):
            store.get_range("key", offset, length)

    def test_rewritten_object(self, folder: LocalStore, store: ArrowStore) -> None:
        folder.put("key", b"old")
        version = store.stat("key").version
        folder.put("key", b"new")
        with pytest.raises(StoreError, match="rewritten"):
            store.get_range("key", 0, 3, version=version)

    def test_every_write_is_refused(self, store: ArrowStore, tmp_path: Path) -> None:
        for call in (
            lambda: store.put("key", b""),
            lambda: store.put_file("key", tmp_path),
            lambda: store.put_if("key", b"", version=None),
            lambda: store.delete("key"),
        ):
            with pytest.raises(StoreError, match=r"(?s)can not be written.*local path or s3://"):
                call()

    @pytest.mark.parametrize("key", ["", "../a", "/a"])
    def test_keys_that_leave_the_folder(self, store: ArrowStore, key: str) -> None:
        for read in (store.get, store.stat, store.child):
            with pytest.raises(StoreError, match="does not name an object"):
                read(key)

    def test_file_system_that_can_not_be_opened(self) -> None:
        with pytest.raises(MtlError, match="can not be opened"):
            ArrowStore("nonsense://bucket").get("key")


def test_client_is_made_anew_after_a_fork_even_while_another_thread_makes_it() -> None:
    script = """
import os, threading
from mtl.store.base import PerProcess

inside, leave = threading.Event(), threading.Event()

def make():
    if os.getpid() == parent:
        inside.set()
        leave.wait()
    return os.getpid()

parent = os.getpid()
made = PerProcess(make)
thread = threading.Thread(target=made.get)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    os._exit(0 if made.get() == os.getpid() else 1)
_, status = os.waitpid(child, 0)
leave.set()
thread.join()
assert status == 0 and made.get() == parent
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=Path(__file__).parents[2])
