"""The spot bridge: a notice of EC2 becomes one drain, whatever the metadata service and the cluster do meanwhile."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mtl.on_ray import spot
from mtl.on_ray.spot import INTERRUPTION, REBALANCE, TOKEN, WARNING_S, Metadata, Notice, notice, watch
from tests.helpers.fake_metadata import FakeMetadata, fake_metadata

ENDS_S = 1505722920.0  # of the example in EC2's manual
SAID = json.dumps({"action": "terminate", "time": "2017-09-18T08:22:00Z"})


@pytest.fixture
def service() -> Iterator[FakeMetadata]:
    with fake_metadata() as running:
        yield running


class FakeNode:
    """A node that lives as long as there are steps, one a look; each step is done before that look."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps = list(steps)
        self.drained: list[Notice] = []
        self.away = False

    def alive(self) -> bool:
        if not self._steps:
            return False
        self._steps.pop(0)()
        return True

    def drain(self, notice: Notice) -> None:
        if self.away:
            raise OSError("the head is away")
        self.drained.append(notice)


def nothing() -> None:
    """No change before the next look."""


def watched(service: FakeMetadata, node: FakeNode, *, rebalance: bool = False, now_s: float = ENDS_S - 120) -> None:
    watch(Metadata(service.endpoint), node, rebalance=rebalance, now=lambda: now_s, sleep=lambda _: None)


def test_nothing_happens_without_a_notice(service: FakeMetadata) -> None:
    node = FakeNode(nothing, nothing)
    watched(service, node)
    assert node.drained == []
    assert service.log == [("PUT", TOKEN, 200), *[("GET", INTERRUPTION, 404)] * 2], "one token serves many questions"


def test_a_notice_drains_once_with_its_deadline(service: FakeMetadata) -> None:
    node = FakeNode(nothing, lambda: service.known.update({INTERRUPTION: SAID}), nothing, nothing)
    watched(service, node)
    assert node.drained == [Notice("EC2: terminate", ENDS_S)]


def test_an_expired_token_is_replaced(service: FakeMetadata) -> None:
    node = FakeNode(nothing, service.tokens.clear, lambda: service.known.update({INTERRUPTION: SAID}))
    watched(service, node)
    assert len(node.drained) == 1
    statuses = [status for method, _, status in service.log if method == "GET"]
    assert statuses == [404, 401, 404, 200]


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_service_that_fails_is_asked_again(
    service: FakeMetadata, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(now: int) -> Callable[[], None]:
        return lambda: setattr(service, "failing", now)

    service.known[INTERRUPTION] = SAID
    node = FakeNode(fail(status), nothing, nothing, fail(0))
    watched(service, node)
    assert len(node.drained) == 1
    assert [record.message for record in caplog.records] == [f"no token: status {status}; trying again"]


def test_a_service_that_is_away_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    with fake_metadata() as gone:
        pass
    node = FakeNode(nothing, nothing, nothing)
    watched(gone, node)
    (record,) = caplog.records
    assert "Connection refused" in record.message


def test_a_drain_that_fails_is_tried_again(service: FakeMetadata) -> None:
    service.known[INTERRUPTION] = SAID
    node = FakeNode(nothing, nothing, lambda: setattr(node, "away", False), nothing)
    node.away = True
    watched(service, node)
    assert len(node.drained) == 1


def test_a_cluster_that_is_away_is_waited_for(service: FakeMetadata) -> None:
    def away() -> None:
        raise OSError("the head is away")

    service.known[INTERRUPTION] = SAID
    node = FakeNode(away, away, nothing)
    watched(service, node)
    assert len(node.drained) == 1


def test_a_rebalance_recommendation_counts_only_where_wanted(service: FakeMetadata) -> None:
    service.known[REBALANCE] = json.dumps({"noticeTime": "2017-09-18T08:00:00Z"})
    node, eager = FakeNode(nothing, nothing), FakeNode(nothing, nothing)
    watched(service, node)
    watched(service, eager, rebalance=True, now_s=1000)
    assert node.drained == []
    assert eager.drained == [Notice("EC2: rebalance recommendation", 1000 + WARNING_S)]


def test_an_interruption_after_a_recommendation_brings_the_deadline(service: FakeMetadata) -> None:
    service.known[REBALANCE] = "{}"
    node = FakeNode(nothing, lambda: service.known.update({INTERRUPTION: SAID}), nothing)
    watched(service, node, rebalance=True)
    assert [drained.what for drained in node.drained] == ["EC2: rebalance recommendation", "EC2: terminate"]
    assert node.drained[1].deadline_s == ENDS_S


@pytest.mark.parametrize("text", ["", "soon", "[]", "{}", '{"action": "stop", "time": null}'])
def test_a_notice_that_can_not_be_read_counts(service: FakeMetadata, text: str) -> None:
    service.known[INTERRUPTION] = text
    found = notice(Metadata(service.endpoint), rebalance=False, now_s=5.0)
    assert found is not None
    assert found.deadline_s == 5.0 + WARNING_S


def test_the_file_stands_on_its_own(tmp_path: Path) -> None:
    source = Path(spot.__file__).read_text()
    imported = [
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    ]
    assert {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"ray"}
    alone = tmp_path / "spot.py"
    alone.write_text(source)
    done = subprocess.run(
        [sys.executable, str(alone), "--help"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--address" in done.stdout
