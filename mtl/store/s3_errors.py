"""What boto3 raises, told as our errors: which bucket, key, endpoint and identity, and what to do."""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)

from mtl.errors import AccessDenied, NotFound, StoreError
from mtl.store.s3_connection import Connection

_DENIED = (
    "403",
    "Forbidden",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "400",  # the answer to a HEAD has no body to name the cause; with an expired token its status is this one
)
_NO_IDENTITY = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
_CUT_OFF = (ConnectionError, HTTPClientError, IncompleteReadError)


def code_of(error: ClientError) -> str:
    """S3's name for the error, such as NoSuchKey; the HTTP status where there is none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def told(error: ClientError | BotoCoreError, bucket: str, key: str, connection: Connection | None) -> StoreError:
    """The error to raise for `error`, which came of a request for `key` in `bucket`.

    Args:
        connection: what the request was made over; None where making it failed.
    """
    address = f"s3://{bucket}/{key}"
    endpoint = connection.endpoint if connection else "an unknown endpoint"
    if isinstance(error, ClientError):
        code = code_of(error)
        got = f"{code}: {error.response.get('Error', {}).get('Message') or 'no message'}, from {endpoint}"
        if code == "NoSuchBucket":
            return NotFound(
                f"There is no bucket '{bucket}'.",
                got=got,
                expected="a bucket that exists",
                do="check its name and AWS_ENDPOINT_URL",
            )
        if code in ("NoSuchKey", "404", "NotFound"):
            return NotFound(f"There is no object {address}.", got=got, do="check the address")
        if code in _DENIED:
            return AccessDenied(
                f"Access to key '{key}' of bucket '{bucket}' was refused.",
                got=f"{got}, as {connection.identity() if connection else 'nobody'}",
                expected="an identity that may do this",
                do="check the policy of this identity, that its credentials have not expired, and the clock; without "
                "s3:ListBucket on the bucket, a key that does not exist is refused like this too",
            )
        return StoreError(f"S3 failed at {address}.", got=got)
    if isinstance(error, _NO_IDENTITY):
        return AccessDenied(
            f"Access to bucket '{bucket}' (key '{key}') needs credentials.",
            got=str(error),
            expected="an instance role, a profile (AWS_PROFILE), or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            do="give this process one of them",
        )
    if isinstance(error, _CUT_OFF):
        return _cut_off(address, endpoint, f"{type(error).__name__}: {error}")
    return StoreError(f"boto3 failed at {address}.", got=f"{type(error).__name__}: {error}")


def gave_up(address: str, endpoint: str, got: str, *, reached: bool) -> StoreError:
    """The error for a read that was tried until patience ended; `reached`: the server has answered something before."""
    if not reached:
        return _cut_off(address, endpoint, got)
    return StoreError(
        f"{address} can not be read now.",
        got=f"{got}, from {endpoint}",
        expected="the bytes, or some progress",
        do="look at the server and the network; the run resumes from its last commit when the command is repeated",
    )


def _cut_off(address: str, endpoint: str, got: str) -> StoreError:
    return StoreError(
        f"The connection to {endpoint} failed at {address}.",
        got=got,
        expected="a server that answers",
        do="check AWS_ENDPOINT_URL, the network, and that the server runs; a server that knows buckets only as "
        "paths needs `s3 = addressing_style = path` in ~/.aws/config",
    )
