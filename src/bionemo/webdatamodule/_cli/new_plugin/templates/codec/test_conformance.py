import pytest

from bionemo.webdatamodule.testing import CodecConformance


class TestCodec(CodecConformance):
    """The codec does what every codec has to do."""

    name = "$name"

    @pytest.fixture
    def values(self):
        return [[1.0, 2.5], [-3.0], [0.1, 1e300, 7.0]]
