import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from bionemo.webdatamodule import SourceDataWDS, Use
from bionemo.webdatamodule.errors import ConfigError, DecodeError, InputError
from bionemo.webdatamodule.testing import same
from bionemo_webdatamodule_images import DecodeImage, ImageReader

PHOTOS = Path(sklearn.datasets.__file__).parent / "images"


def encoded(pixels, kind="PNG", mode=None):
    """Return an array as the bytes of an image file."""
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def put(directory, *paths):
    """Make tiny images of these paths below a directory, and return it as a string."""
    for path in paths:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(path.encode())
    return str(directory)


def test_photographs_are_copied_untouched_and_decode_to_their_pixels():
    """Two real photographs come out as scikit-learn reads them."""
    reader = ImageReader(directory=str(PHOTOS), label=None)

    names = reader.names()
    pixels = list(DecodeImage()(sample.files["jpg"] for sample in reader(names)))

    assert ["china", "flower"] == names
    assert [(PHOTOS / f"{name}.jpg").read_bytes() for name in names] == [s.files["jpg"] for s in reader(names)]
    assert same(load_sample_images().images, pixels)


def test_classes_are_numbered_by_sorted_folders(tmp_path):
    """The first folder is the class; hidden ones and files beside the folders do not count."""
    directory = put(tmp_path, "dog/1.png", "cat/old/2.png", "emu/3.PNG", ".cache/4.png", "emu/.hidden.png", "emu/a.txt")

    reader = ImageReader(directory=directory)

    assert ["cat/old/2", "dog/1", "emu/3"] == reader.names()
    assert [b"0", b"1", b"2"] == [sample.files["cls"] for sample in reader(reader.names())]


def test_classes_can_be_given(tmp_path):
    """A list of classes fixes their numbers, whatever folders there are."""
    reader = ImageReader(directory=put(tmp_path, "dog/1.png"), classes=["cat", "dog"], label="kind.cls")

    assert [{"png": b"dog/1.png", "kind.cls": b"1"}] == [sample.files for sample in reader(["dog/1"])]


def test_one_suffix_can_serve_all_formats(tmp_path):
    """A folder of PNG and JPEG files can be one field."""
    reader = ImageReader(directory=put(tmp_path, "1.png", "2.jpeg"), label=None, suffix="image")

    assert [{"image": b"1.png"}, {"image": b"2.jpeg"}] == [sample.files for sample in reader(["1", "2"])]


def test_bad_folders_are_errors(tmp_path):
    """No image, an image without a class and two images of one name are said at once."""
    with pytest.raises(InputError, match="directory cannot be read"):
        ImageReader(directory=str(tmp_path / "none")).names()
    with pytest.raises(InputError, match=r"no image was found; images end in bmp, gif"):
        ImageReader(directory=put(tmp_path / "empty", "a/a.txt")).names()
    with pytest.raises(InputError, match="'1' is in the folder of no class"):
        ImageReader(directory=put(tmp_path / "bare", "1.png")).names()
    with pytest.raises(InputError, match=r"1\.jpg and 1\.png would both be the sample 'a/1'"):
        ImageReader(directory=put(tmp_path / "twice", "a/1.png", "a/1.jpg")).names()
    with pytest.raises(InputError, match=r"\(cat\)"):
        list(ImageReader(directory=put(tmp_path / "new", "dog/1.png"), classes=["cat"])(["dog/1"]))


def test_class_folders_that_are_links_keep_their_images_and_numbers(tmp_path, caplog):
    """A linked class, a linked folder within a class and a linked file are read; a link back up is not followed."""
    put(tmp_path / "store", "cats/1.png", "old/2.png", "3.png")
    root = Path(put(tmp_path / "data", "ant/0.png", "dog/4.png"))
    (root / "cat").symlink_to(tmp_path / "store" / "cats")
    (root / "dog" / "old").symlink_to(tmp_path / "store" / "old")
    (root / "dog" / "3.png").symlink_to(tmp_path / "store" / "3.png")
    (root / "dog" / "up").symlink_to(root)
    reader = ImageReader(directory=str(root))

    assert ["ant/0", "cat/1", "dog/3", "dog/4", "dog/old/2"] == reader.names()
    assert [b"0", b"1", b"2", b"2", b"2"] == [sample.files["cls"] for sample in reader(reader.names())]
    assert "did not follow 1 link to folders around them, first dog/up" in caplog.text


def test_hidden_images_and_empty_classes_are_logged(tmp_path, caplog):
    """A class without an image keeps its number, so that the classes of two data sets agree."""
    put(tmp_path, "ant/1.png", "ant/.2.png", ".trash/3.png", "dog/4.png")
    (tmp_path / "cat").mkdir()
    reader = ImageReader(directory=str(tmp_path))

    assert ["ant/1", "dog/4"] == reader.names()
    assert b"2" == next(reader(["dog/4"])).files["cls"]
    assert "left out 1 hidden file and 1 hidden folder" in caplog.text
    assert "no image of 1 class, first cat" in caplog.text


@pytest.mark.parametrize("name", ["../secret/1", "/etc/1", "a/../../secret/1", "a//1", "./a/1"])
def test_names_stay_below_the_directory(tmp_path, name):
    """A name that leads elsewhere, or is another spelling of one, is refused."""
    put(tmp_path, "secret/1.png", "images/a/1.png")

    with pytest.raises(InputError, match="not a path below the directory"):
        list(ImageReader(directory=str(tmp_path / "images"), label=None)([name]))


def test_unreadable_folder_is_an_error(tmp_path, monkeypatch):
    """Images in a folder that cannot be listed are not left out in silence."""
    directory = put(tmp_path, "a/1.png", "a/locked/2.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)

    with pytest.raises(InputError, match=r"cannot be listed: Permission denied.*locked"):
        ImageReader(directory=directory).names()


def test_a_change_of_file_or_class_shows(tmp_path):
    """The fingerprint changes with the file, and with the number of the class."""
    reader = ImageReader(directory=put(tmp_path, "dog/1.png"))
    first = reader.fingerprints(["dog/1"])

    (tmp_path / "dog" / "1.png").write_bytes(b"longer than before")
    second = reader.fingerprints(["dog/1"])
    (tmp_path / "cat").mkdir()
    third = reader.fingerprints(["dog/1"])

    assert 3 == len({*first, *second, *third})


def test_wrong_options_are_errors(tmp_path):
    """The message says what the option takes."""
    with pytest.raises(ConfigError, match="lists of names"):
        ImageReader(directory=".", extensions="png")
    with pytest.raises(ConfigError, match="classes names a folder twice"):
        ImageReader(directory=".", classes=["a", "a"])
    with pytest.raises(ConfigError, match="mode is one of L, LA, RGB, RGBA"):
        DecodeImage(mode="CMYK")
    with pytest.raises(ConfigError, match="output is"):
        DecodeImage(output="jax")
    with pytest.raises(ConfigError, match="size is a height and a width"):
        DecodeImage(size=(0, 5))


def test_modes_and_sizes():
    """Pixels are uint8 of the shape (height, width, channels), in the mode asked for."""
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    data = encoded(grey)

    assert same(grey[..., None], DecodeImage(mode="L").decode(data))
    assert same(np.repeat(grey[..., None], 3, axis=2), DecodeImage().decode(data))
    assert (3, 4, 4) == DecodeImage(mode="RGBA").decode(data).shape
    assert (5, 7, 3) == DecodeImage(size=(5, 7)).decode(data).shape
    assert (3, 4, 3) == DecodeImage().decode(encoded(grey, "GIF", "P")).shape


def test_pixels_are_writable_arrays_or_tensors():
    """A stage behind may change the pixels."""
    data = encoded(np.zeros((2, 2, 3), np.uint8))
    tensor = DecodeImage(output="tensor").decode(data)
    array = DecodeImage().decode(data)

    tensor += 1
    array += 1

    assert torch.equal(torch.ones(2, 2, 3, dtype=torch.uint8), tensor)
    assert same(np.ones((2, 2, 3), np.uint8), array)


def test_one_value_of_a_tuple_is_decoded():
    """The others stay as they are, wherever the image is."""
    data = encoded(np.full((1, 1), 9, np.uint8))

    ((number, last),) = DecodeImage(field=1, mode="L")(iter([(5, data)]))
    ((first, name),) = DecodeImage(field=-2, mode="L")(iter([(data, "x")]))

    assert (5, [[[9]]]) == (number, last.tolist())
    assert ([[[9]]], "x") == (first.tolist(), name)


def test_bombs_are_refused_before_they_are_unpacked():
    """A file of a few bytes whose header announces a billion pixels is an error, and so is any above the limit."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def announced(side):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    with pytest.raises(DecodeError, match="8000 x 8000 pixels has more than max_pixels=50000000"):
        DecodeImage().decode(announced(8000))
    with pytest.raises(DecodeError, match="decompression bomb"):
        DecodeImage().decode(announced(40_000))
    with pytest.raises(DecodeError, match="5 x 4 pixels has more than max_pixels=19"):
        DecodeImage(max_pixels=19).decode(encoded(np.zeros((4, 5), np.uint8)))


def test_bytes_that_are_no_good_image_are_errors():
    """Truncated files, other bytes, other formats, deep colour and objects that are not bytes each have a message."""
    photo = (PHOTOS / "flower.jpg").read_bytes()

    with pytest.raises(DecodeError, match="not a readable image"):
        DecodeImage().decode(photo[: len(photo) // 2])
    with pytest.raises(DecodeError, match="not a readable image"):
        DecodeImage().decode(b"")
    with pytest.raises(DecodeError, match="not a readable image"):
        DecodeImage(formats=("PNG",)).decode(photo)
    with pytest.raises(DecodeError, match=r"mode 'I;16' has more than 8 bits"):
        DecodeImage(mode="L").decode(encoded(np.array([[1000]], np.uint16)))
    with pytest.raises(DecodeError, match="not int; in tuples of several suffixes"):
        list(DecodeImage()(iter([(5, photo)])))


def deep_png(colour, channels):
    """Return a PNG of 2 x 2 pixels with 16 bits a channel."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 16, colour, 0, 0, 0)
    rows = (b"\0" + b"\x12\x34" * channels * 2) * 2
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_images_of_16_bits_a_channel_are_refused_in_colour_too(colour, channels):
    """Pillow opens them as modes of 8 bits and drops the lower ones."""
    with pytest.raises(DecodeError, match="more than 8 bits a channel"):
        DecodeImage(mode="RGB").decode(deep_png(colour, channels))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_skipped_by_a_codec_and_not_by_a_stage(workers, tmp_path):
    """What on_error says is about reading, which a codec is a part of."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(encoded(np.zeros((4, 5, 3), np.uint8)) if name != "b" else b"cut short")

    def batches(**options):
        module = SourceDataWDS(
            Use("images", directory=str(tmp_path), label=None),
            {"test": ["a", "b", "c"]},
            f"{tmp_path}/out-",
            "png",
            global_batch_size=3,
            executor="serial",
            on_error="skip",
            kwargs_wld={"test": {"num_workers": workers}},
            **options,
        )
        module.prepare_data()
        module.setup("test")
        shapes = [tuple(batch.shape) for batch in module.test_dataloader()]
        return shapes, module.skipped

    decode = DecodeImage(output="tensor")
    assert ([(2, 4, 5, 3)], {"test": 1}) == batches(codecs={"png": decode})
    with pytest.raises(DecodeError, match="these 9 bytes are not a readable image"):
        batches(pipeline_wds={"test": ["untuple", decode]})
