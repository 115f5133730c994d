"""A real S3 server for the tests."""

import boto3
import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture
def bucket(monkeypatch):
    """URL of a bucket, whose keys and endpoint are in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()
