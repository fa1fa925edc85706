"""Reaching a head: addresses, tokens, and what is refused."""

from pathlib import Path

import pytest

from mtl.errors import ConfigError, ResourceError
from mtl.on_ray.head import Head, HeadLost, connect, find_token, is_local
from tests.helpers.fake_head import fake_head

TOKEN = {"RAY_AUTH_TOKEN": "canary-token"}


@pytest.fixture(autouse=True)
def no_token_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address looks like another machine's."""
    monkeypatch.setattr("mtl.on_ray.head.is_local", lambda _: False)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://127.8.0.1:1", True),
        ("http://[::1]:8265", True),
        ("http://localhost:8265", True),
        ("http://10.0.0.1:8265", False),
        ("http://head:8265", False),
        ("http://localhost.example.org", False),
    ],
)
def test_what_is_local(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_a_token_is_sent_where_one_is_asked_for() -> None:
    with fake_head(token="canary-token") as fake:
        head, about = connect(fake.address, TOKEN)
        assert "token accepted" in about
        assert head.jobs() == []


@pytest.mark.usefixtures("remote")
def test_a_remote_head_needs_a_token() -> None:
    with fake_head(token="x") as fake, pytest.raises(ResourceError, match="needs a token"):
        connect(fake.address, {})
    assert fake.requests == []


@pytest.mark.usefixtures("remote")
def test_a_remote_head_open_to_all_is_refused_and_never_sees_the_token() -> None:
    with fake_head() as fake, pytest.raises(ResourceError, match="open to everybody"):
        connect(fake.address, TOKEN)
    assert "canary-token" not in str(fake.requests)


@pytest.mark.usefixtures("remote")
def test_a_token_on_plain_http_is_remarked_on() -> None:
    with fake_head(token="canary-token") as fake:
        assert "unencrypted" in connect(fake.address, TOKEN)[1]


@pytest.mark.usefixtures("remote")
def test_disabled_authentication_is_named() -> None:
    with fake_head(token="x") as fake, pytest.raises(ResourceError, match="RAY_AUTH_MODE=disabled"):
        connect(fake.address, {**TOKEN, "RAY_AUTH_MODE": "disabled"})


def test_a_local_head_may_be_open() -> None:
    with fake_head() as fake:
        head, about = connect(fake.address, TOKEN)
        assert "open to everybody" in about
        assert head.headers == {}


def test_a_wrong_token() -> None:
    with fake_head(token="right") as fake, pytest.raises(ResourceError, match="does not accept the token"):
        connect(fake.address, TOKEN)


def test_a_local_head_that_wants_a_token() -> None:
    with fake_head(token="right") as fake, pytest.raises(ResourceError, match="there is none here"):
        connect(fake.address, {})


def test_nobody_there() -> None:
    with fake_head() as fake:
        pass
    with pytest.raises(ResourceError, match="No Ray head answers") as error:
        connect(fake.address, {})
    assert "ray start --head" in str(error.value)


@pytest.mark.parametrize("version", [{"name": "another server"}, "<html>", [1]])
def test_another_server(version: object) -> None:
    with fake_head(version=version) as fake, pytest.raises(ResourceError, match="No Ray head answers"):
        connect(fake.address, {})


@pytest.mark.parametrize(
    "address", ["ray://x:10001", "ftp://x", "http://", "http://x:99999", "http://user:secret@x", "http://x?y"]
)
def test_a_malformed_address(address: str) -> None:
    with pytest.raises(ConfigError, match="not that of a head's dashboard") as error:
        connect(address, {})
    assert "secret" not in str(error.value)


def test_the_address_comes_from_the_environment() -> None:
    with fake_head() as fake:
        assert connect(None, {"RAY_API_SERVER_ADDRESS": fake.address, "RAY_ADDRESS": "http://x"})[0].address
        assert connect(None, {"RAY_ADDRESS": fake.address})[0].address == fake.address
        assert connect(fake.address.removeprefix("http://") + "/", {})[0].address == fake.address


def test_tokens_are_looked_for_where_ray_looks(tmp_path: Path) -> None:
    assert find_token({}) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("at-home\n")
    (tmp_path / "file").write_text("in-file")
    assert find_token({}) == "at-home"
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "file")}) == "in-file"
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "file"), "RAY_AUTH_TOKEN": "first"}) == "first"
    for broken in ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, {"RAY_AUTH_TOKEN": "a\nb"}):
        with pytest.raises(ConfigError):
            find_token(broken)


def test_what_passes_and_what_does_not() -> None:
    with fake_head(failures=1) as fake:
        head = Head(fake.address)
        with pytest.raises(HeadLost, match="not ready"):
            head.jobs()
        with pytest.raises(ResourceError, match="does not exist"):
            head.job("nobody")
        fake.add("mine-a1")
        fake.jobs.append({"type": "DRIVER", "submission_id": None})
        (job,) = head.jobs()
        assert (job.run, job.over, job.entrypoint) == ("mine", False, "python jobs/x.py")
