"""boto3's session and client of one process, and the signed addresses that objects are read from."""

import threading
import time
from dataclasses import dataclass
from typing import Any, final

import boto3
import botocore.session
from botocore.config import Config
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from mtl.store.wire import Address

ATTEMPTS = 2
_CONFIG = Config(
    # An endpoint that swallows packets costs two connects and a pause of at most 1 s: an answer within ten seconds.
    connect_timeout=3,
    read_timeout=20,
    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    max_pool_connections=32,
    # Other servers than AWS know only some of the newer checksums.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    signature_version="s3v4",  # also where boto3 would still sign an address by version 2
)
_SIGNED_S = 3600  # as long as an address is good; much more than _KEPT_S, for servers whose clock is ahead
_KEPT_S = 300.0  # shorter than what boto3 leaves of a role's credentials before it replaces them
_KEPT = 4096


@dataclass(frozen=True)
class Signed:
    """An address that an object may be read from, with any range and condition, and the credentials it stems from."""

    address: Address
    credentials: int
    until: float


@final
class Connection:
    """Shared by threads.

    Raises:
        BotoCoreError: the profile does not exist, or credentials can not be found.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0  # of the credentials in use
        self._session, self._client = _connect()
        self._signed: dict[tuple[str, str], Signed] = {}

    @property
    def client(self) -> Any:
        """boto3's S3 client."""
        return self._client

    @property
    def endpoint(self) -> str:
        """The URL of the server."""
        return self._client.meta.endpoint_url

    def identity(self) -> str:
        """Who requests are made as; no secret."""
        credentials = self._session.get_credentials()
        return f"access key {credentials.access_key}" if credentials else "nobody (no credentials were found)"

    def sign(self, bucket: str, key: str) -> Signed:
        """The address to read `key` from."""
        known = self._signed.get((bucket, key))
        if known is not None and time.monotonic() < known.until:
            return known
        # Ranges and conditions are headers, and not signed: one address, 0.6 ms of CPU, serves all reads of an object.
        number = self._number
        url = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_SIGNED_S
        )
        signed = Signed(Address.of(url), number, time.monotonic() + _KEPT_S)
        with self._lock:
            if len(self._signed) >= _KEPT:
                self._signed.clear()
            self._signed[bucket, key] = signed
        return signed

    def renew(self, refused: Signed) -> bool:
        """Look for credentials anew, because those of `refused` have expired. Returns whether there are others."""
        with self._lock:
            if self._number != refused.credentials:
                return True
            session, client = _connect()
            if _frozen(session) == _frozen(self._session):
                client.close()
                return False
            self._session, self._client = session, client
            self._number += 1
            self._signed.clear()
            return True


def cafile() -> str:
    """The file of certificates that boto3 trusts."""
    return get_cert_path(botocore.session.Session().get_config_variable("ca_bundle") or True)


def proxy(url: str) -> str | None:
    """The proxy of the environment for `url`."""
    return get_environ_proxies(url).get(url.partition(":")[0])


def _connect() -> tuple[boto3.Session, Any]:
    session = boto3.Session()  # the default session is not safe between threads
    return session, session.client("s3", config=_CONFIG)


def _frozen(session: boto3.Session) -> Any:
    credentials = session.get_credentials()
    return credentials and credentials.get_frozen_credentials()
