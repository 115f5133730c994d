"""The store keeps what the kit asks of every store."""

import pytest

from bionemo.webdatamodule.testing import StoreConformance


class TestS3(StoreConformance):
    """A real S3 server."""

    name = "obstore"

    @pytest.fixture
    def base_url(self, bucket):
        """A directory in a bucket."""
        return f"{bucket}/some"
