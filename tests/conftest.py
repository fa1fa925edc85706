"""Fixtures for every test: the real data beside the checkout, and buckets on a real S3 server."""

import atexit
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch: each rank of a test is a process of its own, and the machine has few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray keeps the address of the cluster at hand in a folder. This process has one of its own: another process of these
# tests, or the person at the machine, may have a cluster too. Its name is short, as sockets lie below it.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="mtl-", dir="/tmp")

import boto3
import pytest
from hypothesis import settings

atexit.register(shutil.rmtree, os.environ["RAY_TMPDIR"], ignore_errors=True)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# A shared machine stalls now and then; how long one example takes is not what a property says.
settings.register_profile("mtl", deadline=None)
settings.load_profile("mtl")


def _beside_checkout(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"../shared/data/{name} is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def sample_images() -> Path:
    """A tar of 1,000 real ImageNet images."""
    return _beside_checkout("imagenet-sample.tar")


@pytest.fixture(scope="session")
def cifar10_tar() -> Path:
    """CIFAR-10, as an xz-compressed tar."""
    return _beside_checkout("cifar10.tar.xz")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a Ray cluster of this process's own, with four CPUs on paper; this process has joined it."""
    import ray
    from ray.job_config import JobConfig

    from mtl.on_ray.cluster import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    context = ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        job_config=JobConfig(_py_driver_sys_path=[str(Path(__file__).resolve().parents[1])]),
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture
def s3() -> Iterator[str]:
    """The URI of a new, empty bucket on the server at AWS_ENDPOINT_URL; removed afterwards."""
    if not os.environ.get("AWS_ENDPOINT_URL"):
        pytest.skip("AWS_ENDPOINT_URL is unset: no S3 server to test against")
    client = boto3.Session().client("s3")
    bucket = f"mtl-test-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=bucket)
    try:
        yield f"s3://{bucket}"
    finally:
        for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=item["Key"])
        client.delete_bucket(Bucket=bucket)
        client.close()
