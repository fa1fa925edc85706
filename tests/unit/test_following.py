"""Following a job: what a person sees, through lost connections, and how it ends."""

import io
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from mtl.errors import ResourceError
from mtl.on_ray import following
from mtl.on_ray.following import Patience, exit_status, follow, stop
from mtl.on_ray.head import Head, HeadLost, Job
from mtl.on_ray.screen import Screen
from tests.helpers.fake_head import FakeHead, fake_head

LOG = "joining Ray\n0:01  step 1/9  lr 1\n0:02  step 2/9  lr 0.5\ncommit at step 2\n0:03  step 9/9  lr 0\nfinished\n"
RUNNING = "mine-a1 is running (0:00)\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_PAUSE_S", 0.01)


@pytest.fixture
def fake() -> Iterator[FakeHead]:
    with fake_head() as head:
        yield head


def scripted(*connections: list[str | Exception | Callable[[], object]]) -> Callable[[str], AsyncIterator[str]]:
    """A log's pieces, connection after connection; an exception breaks one, a function is called in between."""
    coming = iter(connections)

    async def tail(_: str) -> AsyncIterator[str]:
        for item in next(coming):
            if isinstance(item, Exception):
                raise item
            if callable(item):
                item()
            else:
                yield item

    return tail


def ended(head: FakeHead, status: str = "SUCCEEDED", code: int | None = 0) -> Callable[[], None]:
    return lambda: head.jobs[0].update(status=status, driver_exit_code=code)


def test_a_pipe_gets_every_line(fake: FakeHead) -> None:
    fake.add("mine-a1")
    shown = io.StringIO()
    tail = scripted([LOG[:20], LOG[20:], ended(fake)])
    assert follow(Head(fake.address), "mine-a1", Screen(shown), tail=tail).status == "SUCCEEDED"
    assert shown.getvalue() == RUNNING + LOG


def test_lost_connections_neither_lose_nor_double_a_line(fake: FakeHead) -> None:
    fake.add("mine-a1")
    shown = io.StringIO()
    tail = scripted(
        [LOG[:30], RuntimeError("closed")],
        [LOG[:10], OSError("reset")],
        [LOG[:10], LOG[10:50]],  # ends orderly, but the job goes on: the head is closing
        [ConnectionResetError()],
        [LOG, ended(fake)],
    )
    follow(Head(fake.address), "mine-a1", Screen(shown), tail=tail)
    assert shown.getvalue() == RUNNING + LOG


def test_a_silent_connection_is_made_anew(fake: FakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(following, "_SILENCE_S", 1.0)
    fake.add("mine-a1")
    connections = 0

    async def tail(_: str) -> AsyncIterator[str]:
        nonlocal connections
        connections += 1
        yield LOG[:30]
        if connections == 1:
            await asyncio.sleep(3600)
        ended(fake)()
        yield LOG[30:]

    shown = io.StringIO()
    follow(Head(fake.address), "mine-a1", Screen(shown), tail=tail)
    assert (connections, shown.getvalue()) == (2, RUNNING + LOG)


def test_a_terminal_shows_progress_on_one_line(fake: FakeHead) -> None:
    fake.add("mine-a1")
    shown = Terminal()
    follow(Head(fake.address), "mine-a1", Screen(shown), tail=scripted([LOG, ended(fake)]))
    kept = [line.rpartition("\x1b[K")[2] for line in shown.getvalue().split("\n")[:-1]]
    assert [line for line in kept if not line.startswith("[")] == ["joining Ray", "commit at step 2", "finished"]
    assert kept[-1].endswith("step 9/9  lr 0")
    assert "step 2/9" in shown.getvalue()


def test_a_log_can_not_steer_the_terminal() -> None:
    shown = io.StringIO()
    Screen(shown).feed("a\x1b[2Jb\x07c\n")
    assert shown.getvalue() == "abc\n"


def test_waiting_is_said_once_and_again_later() -> None:
    now, shown = 0.0, io.StringIO()
    screen = Screen(shown, every_s=15, now=lambda: now)
    for now in range(40):  # noqa: B007
        screen.wait("being set up")
    assert shown.getvalue().splitlines() == [f"being set up (0:{s:02d})" for s in (0, 15, 30)]


def test_a_job_that_is_set_up_is_waited_for(fake: FakeHead) -> None:
    row = fake.add("mine-a1", "PENDING")
    shown = io.StringIO()
    answers = iter(["PENDING", "PENDING", "RUNNING"])
    original = fake.answer

    def answer(*asked: object) -> tuple[int, object]:
        row["status"] = next(answers, row["status"])
        return original(*asked)  # type: ignore[arg-type]

    fake.answer = answer  # type: ignore[method-assign]
    follow(Head(fake.address), "mine-a1", Screen(shown), tail=scripted([LOG, ended(fake)]))
    assert shown.getvalue() == f"mine-a1 is being set up on the head (0:00)\n{RUNNING}{LOG}"


def test_the_end_of_a_log_may_be_gone(fake: FakeHead) -> None:
    fake.add("mine-a1", "FAILED")
    lost: list[str | Exception | Callable[[], object]] = [OSError("its node is gone")]
    assert follow(Head(fake.address), "mine-a1", Screen(io.StringIO()), tail=scripted(*[lost] * 9)).status == "FAILED"


def test_patience_says_once_that_it_waits_and_that_it_is_over() -> None:
    said: list[str] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    failures = iter([HeadLost("reset")] * 5)

    def ask() -> str:
        for error in failures:
            raise error
        return "here"

    assert Patience(said.append, 900, lambda: now, sleep)(ask) == "here"
    assert [line.partition(" (")[0] for line in said] == [
        "the connection to the head is lost",
        "connected again after 0:30",
    ]
    assert now == 30  # 1 + 2 + 4 + 8 + 15

    def gone() -> str:
        raise HeadLost("refused")

    with pytest.raises(ResourceError, match="does not answer any more"):
        Patience(said.append, 900, lambda: now, sleep)(gone)


@pytest.mark.parametrize(
    ("status", "code", "expected"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("STOPPED", None, 143)]
)
def test_the_exit_status_is_the_jobs(status: str, code: int | None, expected: int) -> None:
    assert exit_status(Job("a-a1", status, "", "", code, 0)) == expected  # type: ignore[arg-type]


def test_a_job_that_never_ran_says_why() -> None:
    with pytest.raises(ResourceError, match="no space left"):
        exit_status(Job("a-a1", "FAILED", "", "runtime_env setup failed:\nno space left", None, 0))


def test_stop_waits_and_shows_what_is_new(fake: FakeHead) -> None:
    fake.add("mine-a1")
    fake.logs["mine-a1"] = LOG[:12]
    shown = io.StringIO()
    head = Head(fake.address)
    outcome = stop(head, head.job("mine-a1"), screen=Screen(shown), tail=scripted([LOG[:12], "stopped, committed\n"]))
    assert outcome.startswith("mine-a1 stopped after 0:0")
    assert shown.getvalue() == "stopping mine-a1: it commits first (0:00)\nstopped, committed\n"
    assert "over before: stopped" in stop(head, head.job("mine-a1"))


def test_a_job_that_did_not_stop_by_itself(fake: FakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "STOP_WAIT_S", 0)
    fake.add("mine-a1")
    head = Head(fake.address)
    with pytest.raises(ResourceError, match="was killed"):
        stop(head, head.job("mine-a1"), screen=Screen(io.StringIO()), tail=scripted([LOG]))
