"""Which codec decodes a field: the user's choice, the manifest's, or what plugins register."""

import io
import json
import tarfile

import pytest

from bionemo.webdatamodule import Codec, Sample, SourceDataWDS, Use, WebDataModule, hookimpl
from bionemo.webdatamodule.errors import ConfigError, DataWarning, PluginError
from bionemo.webdatamodule.plugins import Plugins

LISTS = {"pipeline_prebatch_wld": {"test": Use("batch", collate="list")}}


class Upper:
    """Decodes text to upper case, and lower-cases it at conversion."""

    def decode(self, view):
        return bytes(view).decode().upper()

    def recode(self, data):
        return data.lower()


class Reversed:
    """Decodes text backwards."""

    def decode(self, view):
        return bytes(view).decode()[::-1]


def broken():
    """Fail as a factory may."""
    raise RuntimeError("no licence")


class Registering:
    """A plugin of some codecs."""

    def __init__(self, codecs):
        self.codecs = codecs

    @hookimpl
    def webdatamodule_codecs(self):
        return self.codecs


def plugins(**codecs):
    """Return the default plugins and one for each codec, by the plugin's name."""
    found = Plugins()
    for name, codec in codecs.items():
        found.register(Registering([codec]), name)
    return found


@pytest.fixture
def foreign(tmp_path):
    """Return a function that writes one foreign shard with a field of text in two samples."""

    def write(suffix):
        with tarfile.open(tmp_path / "wdshards-0.tar", "w") as archive:
            for name, text in (("a", b"ab"), ("b", b"cd")):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
        return tmp_path

    return write


def batch(directory, suffix, **options):
    """Return the only batch of the test split."""
    module = WebDataModule({"test": directory}, None, suffix, 2, **LISTS, **options)
    module.setup("test")
    (found,) = module.test_dataloader()
    return found


@pytest.mark.parametrize("key", ["jpg", "JPG", "img.jpg", "jpg?", "png;jpg", "img.jpg;cls?"])
@pytest.mark.parametrize("asked", ["jpg", "img.jpg", "Img.JPG?"])
def test_a_choice_is_for_every_suffix_that_it_names(foreign, key, asked):
    """Its suffixes are written as in suffix_keys_wds."""
    assert ["AB", "CD"] == batch(foreign("img.JPG"), asked, codecs={key: Upper()})


def test_the_choice_of_the_longest_ending_counts(foreign):
    """As among registered codecs."""
    assert ["ba", "dc"] == batch(foreign("a.img.jpg"), "jpg", codecs={"jpg": Upper(), "img.jpg": Reversed()})


def test_a_choice_for_no_field_that_is_read_is_warned_of(foreign):
    """A typo would otherwise go unnoticed."""
    with pytest.warns(DataWarning, match=r"codecs\['jpgg'\] is for none of the fields that are read: jpg"):
        assert [b"ab", b"cd"] == batch(foreign("jpg"), "jpg", codecs={"jpgg": Upper()})


@pytest.mark.parametrize("given", ["pickle", 5, {1: "json"}])
def test_choices_are_a_mapping_from_suffixes(given):
    """Anything else is an error that shows one."""
    with pytest.raises(ConfigError, match="codecs is a mapping from suffixes to codecs, such as"):
        WebDataModule({"test": "x"}, None, "jpg", 2, codecs=given)


def test_two_plugins_with_one_name_of_a_codec_are_an_error(foreign):
    """The choice by name would be ambiguous."""
    both = plugins(one=Codec(name="c", summary="c", factory=Upper), two=Codec(name="c", summary="c", factory=Reversed))
    with pytest.raises(PluginError, match="the codec 'c' is registered by the plugin 'one' and by the plugin 'two'"):
        batch(foreign("jpg"), "jpg", codecs={"jpg": "c"}, plugins=both)


def test_a_codec_that_overrides_a_default_takes_its_suffixes(foreign):
    """It need not name them again."""
    mine = plugins(mine=Codec(name="json", summary="c", factory=Upper, override=True))
    assert ["AB", "CD"] == batch(foreign("x.json"), "json", plugins=mine)


def test_a_factory_that_fails_names_its_plugin_and_the_suffix(foreign):
    """So that the plugin can be updated or disabled."""
    mine = plugins(mine=Codec(name="c", summary="c", factory=broken, suffixes=("jpg",)))
    with pytest.raises(PluginError, match=r"the codec 'c' cannot be made: RuntimeError: no licence") as caught:
        batch(foreign("jpg"), "jpg", plugins=mine)
    assert {"suffix": "jpg", "plugin": "mine"}.items() <= caught.value.where.items()


def converted(directory, suffix, data, **options):
    """Convert two samples of one field; return what is stored, the manifest's codecs and the batch."""

    def read(names):
        return (Sample(name, {suffix: data}) for name in names)

    read.codecs = options.pop("declared", {})
    module = SourceDataWDS(
        read, {"test": ["a", "b"]}, f"{directory}/", suffix, 2, executor="serial", n_tars_wds=1, **LISTS, **options
    )
    module.prepare_data()
    module.setup("test")
    with tarfile.open(directory / "test" / "wdshards-000000.tar") as archive:
        stored = archive.extractfile(archive.getmembers()[0]).read()
    codecs = json.loads((directory / "test" / "wdshards.manifest.json").read_text())["codecs"]
    return stored, codecs, list(module.test_dataloader())


def test_a_plugins_codec_recodes_the_fields_of_its_suffixes(tmp_path):
    """As the default one for pickles does, and the manifest names it."""
    mine = plugins(mine=Codec(name="upper", summary="c", factory=Upper, suffixes=("up",)))
    assert (b"ab", {"x.up": "upper"}, [["AB", "AB"]]) == converted(tmp_path, "x.up", b"aB", plugins=mine)


def test_a_plugins_codec_that_does_not_recode_is_found_by_the_suffix(tmp_path):
    """The manifest leaves it to the suffix, also where a shorter ending is that of pickles."""
    mine = plugins(mine=Codec(name="back", summary="c", factory=Reversed, suffixes=("cell.pyd",)))
    assert (b"ab", {"cell.pyd": "bytes"}, [["ba", "ba"]]) == converted(tmp_path, "cell.pyd", b"ab", plugins=mine)


@pytest.mark.parametrize(("suffix", "codec"), [("a.json", "json"), ("b.pyd", "pickle")])
def test_plain_bytes_cannot_have_a_suffix_of_a_codec(tmp_path, suffix, codec):
    """In a manifest "bytes" leaves it to the suffix, so the writer has to take another."""
    message = (
        f"declares the codec 'bytes' for the suffix '{suffix}', whose fields are decoded as {codec}; take a suffix"
    )
    with pytest.raises(PluginError, match=message):
        converted(tmp_path, suffix, b"ab", declared={suffix: "bytes"})
    free = suffix.replace(".", "_")
    assert (b"ab", {free: "bytes"}, [[b"ab", b"ab"]]) == converted(tmp_path, free, b"ab", declared={free: "bytes"})
