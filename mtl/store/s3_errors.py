"""What boto3 raises, told as our errors: which bucket, key, endpoint and identity, and what to do."""

from typing import Any

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


def told(error: ClientError | BotoCoreError, bucket: str, key: str, connection: tuple[Any, Any] | None) -> StoreError:
    """The error to raise for `error`, which came of a request for `key` in `bucket`.

    Args:
        connection: boto3 session and client; None where making them failed.
    """
    address = f"s3://{bucket}/{key}"
    endpoint = connection[1].meta.endpoint_url if connection else "an unknown endpoint"
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
                got=f"{got}, as {_identity(connection)}",
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
        return StoreError(
            f"The connection to {endpoint} failed at {address}.",
            got=f"{type(error).__name__}: {error}",
            expected="a server that answers",
            do="check AWS_ENDPOINT_URL, the network, and that the server runs; a server that knows buckets only as "
            "paths needs `s3 = addressing_style = path` in ~/.aws/config",
        )
    return StoreError(f"boto3 failed at {address}.", got=f"{type(error).__name__}: {error}")


def _identity(connection: tuple[Any, Any] | None) -> str:
    credentials = connection[0].get_credentials() if connection else None
    return f"access key {credentials.access_key}" if credentials else "nobody (no credentials were found)"
