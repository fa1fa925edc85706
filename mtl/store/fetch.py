"""Byte ranges from S3, whatever happens on the way: tried again, resumed where they broke off, within limits."""

import html
import random
import re
import ssl
import time
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
from botocore.exceptions import ClientError

from mtl.store.base import rewritten, short_read
from mtl.store.hedging import Hedging
from mtl.store.patience import Patience, RetryBudget, pause_s
from mtl.store.s3_connection import Connection, Signed, cafile, proxy
from mtl.store.s3_errors import code_of, gave_up, told
from mtl.store.throttle import Throttle
from mtl.store.traffic import Counter, Traffic
from mtl.store.wire import FAILURES, Answer, Wires

_PASSING = (408, 429, 500, 502, 503, 504)
_SLOW_DOWN = (429, 503)
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId")


@final
@dataclass(frozen=True)
class Range:
    """`length` bytes from `offset` of an object."""

    bucket: str
    key: str
    offset: int
    length: int

    @property
    def where(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@final
class Fetcher:
    """Reads ranges for the threads of one process, which share connections, budget and throttle.

    Args:
        connection: to S3.
        patience: deadlines and limits.
        draw: of pauses.
    """

    def __init__(self, connection: Connection, patience: Patience, draw: random.Random) -> None:
        self._connection, self._patience, self._draw = connection, patience, draw
        self._wires = Wires(patience, cafile, proxy)
        self._budget, self._throttle, self._hedging = RetryBudget(patience), Throttle(), Hedging(patience.hedge_share)
        self._counter = Counter()
        self._reached = False

    def traffic(self) -> Traffic:
        """What it took so far."""
        return self._counter.snapshot()

    def read(self, wanted: Range, version: str | None) -> tuple[memoryview, str]:
        """The bytes and their version, which is `version` unless that is None.

        Raises:
            StoreError: see Store.get_range.
            BotoCoreError: no credentials.
        """
        body = np.empty(wanted.length, np.uint8).data
        got, tries, renewed = 0, 0, False
        moved, moved_at = 0, time.monotonic()  # the last progress worth the name
        while True:
            signed = self._connection.sign(wanted.bucket, wanted.key)
            with self._throttle.slot() as since:
                try:
                    # The version of the first piece holds for the others, which may come from another answer.
                    part, version, trouble = self._receive(wanted, signed, body, got, version)
                except _Refused as refused:
                    if refused.slow_down:
                        self._throttle.slow_down(since)
                        self._counter.add(throttles=1)
                    if not refused.passing:
                        if code_of(refused.error) in _EXPIRED and not renewed and self._connection.renew(signed):
                            renewed = True
                            continue
                        raise _final(refused.error, wanted, version, self._connection) from None
                    part, trouble = 0, str(refused)
            got += part
            if got == wanted.length:
                self._throttle.delivered()
                self._budget.earn()
                assert version is not None
                return body, version
            if got - moved >= min(self._patience.window_bytes, wanted.length - got):
                moved, moved_at = got, time.monotonic()
            tries += 1
            self._pause(wanted, tries, moved_at, trouble)

    def _receive(
        self, wanted: Range, signed: Signed, body: memoryview, got: int, version: str | None
    ) -> tuple[int, str | None, str]:
        """One request for what is missing of `body`: bytes received (negative: to drop), version, what went wrong.

        Raises:
            _Refused: the server answered with an error.
            StoreError: it can not have what was asked for.
        """
        start = wanted.offset + got
        headers = {"Range": f"bytes={start}-{wanted.offset + wanted.length - 1}"}
        if version:
            headers["If-Match"] = version
        try:
            on_hedge = partial(self._counter.add, hedges=1)
            answer = self._wires.ask(signed.address, headers, self._hedging, on_hedge)
        except ssl.SSLCertVerificationError as error:
            raise gave_up(wanted.where, self._connection.endpoint, str(error), reached=False) from error
        except FAILURES as error:
            return 0, version, f"{type(error).__name__}: {error}"
        self._reached = True
        try:
            if answer.status not in (200, 206):
                raise _Refused(answer)
            length = _length(answer, wanted, got)
            if length is None:  # all anew: perhaps only the rest of a range is more than this server knows
                return -got, version, "an answer that is not the range which was asked for"
            found = answer.headers.get("ETag", "").strip('"')
            if version and found != version:  # a server that ignores If-Match
                raise rewritten(wanted.where, version, f"version {found}")
            part, trouble = answer.receive(body[got : got + length])
            return part, found, f"{type(trouble).__name__}: {trouble}" if trouble else "the body was too short"
        finally:
            self._wires.finish(signed.address, answer)

    def _pause(self, wanted: Range, tries: int, moved_at: float, trouble: str) -> None:
        """Wait before the next try.

        Raises:
            StoreError: patience would end first.
        """
        wait_s = max(pause_s(self._patience, tries, self._draw), self._budget.spend())
        limit_s = self._patience.total_s if self._reached else self._patience.contact_s
        if time.monotonic() + wait_s > moved_at + limit_s:
            got = f"{trouble} (the last of {tries} failures in {time.monotonic() - moved_at:.1f} s)"
            raise gave_up(wanted.where, self._connection.endpoint, got, reached=self._reached)
        self._counter.add(retries=1)
        time.sleep(wait_s)


class _Refused(Exception):
    """An answer that is an error."""

    def __init__(self, answer: Answer) -> None:
        text = answer.error_text()
        said = {name: re.search(rf"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message")}
        code, message = (html.unescape(match[1]) if match else "" for match in said.values())
        code = code or str(answer.status)
        self.error = ClientError({"Error": {"Code": code, "Message": message}}, "GetObject")
        self.slow_down = answer.status in _SLOW_DOWN
        self.passing = answer.status in _PASSING or code == "RequestTimeout"
        super().__init__(f"{code}: {message or 'no message'}")


def _final(error: ClientError, wanted: Range, version: str | None, connection: Connection) -> Exception:
    match code_of(error):
        case "PreconditionFailed" | "412":
            return rewritten(wanted.where, version or "")
        case "InvalidRange" | "416":
            return short_read(wanted.where, wanted.offset, wanted.length)
        case _:
            return told(error, wanted.bucket, wanted.key, connection)


def _length(answer: Answer, wanted: Range, got: int) -> int | None:
    """How many bytes of the range this answer brings; None if it is not about that range.

    Raises:
        StoreError: the object ends inside the range.
    """
    start, missing = wanted.offset + got, wanted.length - got
    if answer.length is None:
        return None
    told_range = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if told_range is None:
        # A server that knows no ranges sends the whole object.
        if answer.status == 200 and (start, missing) != (0, answer.length):
            return None
        if answer.length < missing:
            raise short_read(wanted.where, wanted.offset, wanted.length, got + answer.length)
        return answer.length if answer.length == missing else None
    first, last = int(told_range[1]), int(told_range[2])
    if first != start:
        return None
    if told_range[3].isdigit() and last - first + 1 < missing and int(told_range[3]) == last + 1:
        raise short_read(wanted.where, wanted.offset, wanted.length, got + last - first + 1)
    return min(answer.length, missing)
