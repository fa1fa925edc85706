"""Who a store is used as: for messages, so never a secret."""

import os

import boto3
from botocore.exceptions import BotoCoreError

from mtl.store.base import Store
from mtl.store.local import LocalStore
from mtl.store.s3 import S3Store


def identity(store: Store) -> str:
    """The user or key that requests are made with, where it comes from, and which server they go to."""
    match store:
        case LocalStore():
            return f"user id {os.getuid()}"
        case S3Store():
            return _s3()
        case _:
            return "whoever pyarrow finds credentials for"


def _s3() -> str:
    session = boto3.Session()
    try:
        credentials = session.get_credentials()
        endpoint: str = session.client("s3").meta.endpoint_url
    except BotoCoreError as error:
        return f"nobody: {error}"
    who = f"access key {credentials.access_key} (from {credentials.method})" if credentials else "nobody"
    return f"{who} at {endpoint}"
