"""A storage on this machine that speaks S3, for tests."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem


@contextmanager
def s3_server() -> Iterator[None]:
    """A server that this process, and those it starts, take for S3."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        _, port = server.get_host_and_port()
        names = {"ACCESS_KEY_ID": "somebody", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
        for name, value in {**names, "ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            environment.setenv(f"AWS_{name}", value)
        S3FileSystem.clear_instance_cache()  # those of an earlier server
        yield
    server.stop()


def new_bucket(name: str) -> str:
    """Make a bucket; its URL."""
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


def upload(folder: Path, url: str) -> None:
    """All files below a folder, to a URL."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for file in folder.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), bucket, f"{prefix}/{file.relative_to(folder)}")


def put(url: str, data: bytes) -> None:
    """An object at a URL."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data)
