"""S3 simulated on loopback, with conditional writes that are atomic, as S3's are."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

IDENTITY = {
    "AWS_ACCESS_KEY_ID": "access-of-this-test",
    "AWS_SECRET_ACCESS_KEY": "secret-of-this-test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def simulated_s3(bucket: str) -> Iterator[dict[str, str]]:
    """A server with an empty `bucket`; the variables under which a process finds it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {**IDENTITY, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    # moto checks a condition and writes in two steps; S3 does it in one.
    put_object, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_alone(self: S3Response) -> object:
        with one_at_a_time:
            return put_object(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", put_alone)
        for name, value in variables.items():
            patch.setenv(name, value)
        boto3.Session().client("s3").create_bucket(Bucket=bucket)
        yield variables
    server.stop()
