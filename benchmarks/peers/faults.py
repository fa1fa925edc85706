"""The fault proxy of the tests before the S3 server. Both sides of a comparison go through one: it costs CPU itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.helpers.fault_proxy import ROUGH, FaultProxy


@contextmanager
def proxied(*, rough: bool) -> Iterator[str]:
    """The address of a proxy; if `rough`, 2 % of requests fail and 1 % are late by 2 s."""
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], ROUGH if rough else ()) as proxy:
        yield proxy.url
