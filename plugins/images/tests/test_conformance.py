from pathlib import Path

import pytest
import sklearn.datasets
from PIL import Image

from bionemo.webdatamodule.testing import StageConformance, WriterConformance
from bionemo_webdatamodule_images import DecodeImage

PHOTOS = Path(sklearn.datasets.__file__).parent / "images"


def tile(column):
    """Return a piece of a real photograph."""
    with Image.open(PHOTOS / "china.jpg") as photo:
        return photo.crop((64 * column, 0, 64 * column + 64, 48))


class TestImages(WriterConformance):
    """Images of two formats in nested class folders."""

    name = "images"

    @pytest.fixture
    def options(self, tmp_path):
        for path in ("roofs/0.png", "roofs/deep/1.0.JPG", "sky/2.png", "sky/3.gif"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            tile(len(path)).save(tmp_path / path)
        (tmp_path / "roofs" / "notes.txt").write_text("no image")
        return {"directory": str(tmp_path)}

    @pytest.fixture
    def expected(self, options):
        found = Path(options["directory"])
        return {
            "roofs/0": {"png": (found / "roofs/0.png").read_bytes(), "cls": b"0"},
            "roofs/deep/1.0": {"jpg": (found / "roofs/deep/1.0.JPG").read_bytes(), "cls": b"0"},
            "sky/2": {"png": (found / "sky/2.png").read_bytes(), "cls": b"1"},
            "sky/3": {"gif": (found / "sky/3.gif").read_bytes(), "cls": b"1"},
        }


class TestDecodeImage(StageConformance):
    """The stage over tuples of image and class."""

    name = "decode_image"

    @pytest.fixture
    def options(self):
        return {"size": (24, 32)}

    @pytest.fixture
    def samples(self):
        return [((PHOTOS / "china.jpg").read_bytes(), 0), ((PHOTOS / "flower.jpg").read_bytes(), 1)]

    @pytest.fixture
    def expected(self, samples):
        decode = DecodeImage(size=(24, 32)).decode
        return [(decode(data), number) for data, number in samples]


class TestDecodeImageToTensors(TestDecodeImage):
    """The stage over bytes alone, to tensors."""

    @pytest.fixture
    def options(self):
        return {"size": (24, 32), "output": "tensor"}

    @pytest.fixture
    def samples(self):
        return [(PHOTOS / "flower.jpg").read_bytes()]

    @pytest.fixture
    def expected(self):
        return None
