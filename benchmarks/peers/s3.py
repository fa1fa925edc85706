"""What the peers need of S3 beside what they do themselves."""

import os
from contextlib import suppress

import boto3

_VALID_S = 24 * 3600


def split(address: str) -> tuple[str, str]:
    """Bucket and key of s3://bucket/key."""
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")


def make_bucket(address: str) -> None:
    """Make the bucket of an address, if it is not there."""
    client = boto3.client("s3")
    with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        client.create_bucket(Bucket=split(address)[0])


def empty(address: str) -> None:
    """Remove all objects below an address: a server in memory has none to spare."""
    bucket, prefix = split(address)
    client = boto3.client("s3")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        if found := [{"Key": item["Key"]} for item in page.get("Contents", [])]:
            client.delete_objects(Bucket=bucket, Delete={"Objects": found, "Quiet": True})


def signed(address: str, suffix: str) -> list[str]:
    """HTTP addresses, valid for a day, of the objects below `address` whose names end with `suffix`."""
    bucket, prefix = split(address)
    client = boto3.client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    keys = sorted(item["Key"] for page in pages for item in page.get("Contents", []) if item["Key"].endswith(suffix))
    return [
        client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_VALID_S)
        for key in keys
    ]


def credentials() -> dict[str, str]:
    """Access key, secret key and endpoint as boto3 finds them; the endpoint is empty for Amazon's own."""
    found = boto3.Session().get_credentials()
    if found is None:
        raise RuntimeError("no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return {
        "access_key": found.access_key,
        "secret_key": found.secret_key,
        "endpoint": os.environ.get("AWS_ENDPOINT_URL", ""),
    }
