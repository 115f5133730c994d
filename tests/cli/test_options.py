"""Components on the command line, `NAME:K=V,K=V`, and standard output that terminals can be trusted with."""

import io
import json
import pickle
import tarfile

import pytest

from bionemo.webdatamodule import Executor, KeyEncoder, Stage, Use
from bionemo.webdatamodule._cli import main, output
from bionemo.webdatamodule._cli.options import reference
from bionemo.webdatamodule.errors import ConfigError, UnknownNameError

ESCAPE = "\x1b[31mred\x07\x9b\u202e"


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (KeyEncoder, "escaped", Use("escaped")),
        (Executor, "processes:workers=2", Use("processes", workers=2)),
        (Stage, "shuffle:size=8,initial=4", Use("shuffle", size=8, initial=4)),
        (Stage, "map:function=os.path:join", Use("map", function="os.path:join")),
        (Stage, "named:names=a,names=b", Use("named", names=["a", "b"])),
        (Stage, 'named:names=["a","b"]', Use("named", names=["a", "b"])),
        (Stage, "batch_by_size:size=x,y,max_total=3", Use("batch_by_size", size="x,y", max_total=3)),
    ],
)
def test_a_component_is_named_with_its_options(kind, text, expected):
    """Options follow a colon; values may hold colons, and commas that begin no other option."""
    assert expected == reference(kind, text, "--flag")


def test_wrong_options_say_where_they_stand():
    """The message has the flag and the name."""
    with pytest.raises(ConfigError, match="--executor processes: takes K=V, not 'workers'"):
        reference(Executor, "processes:workers", "--executor")
    with pytest.raises(UnknownNameError, match=r"no executor is named 'process'; did you mean 'processes'\?"):
        reference(Executor, "process:workers=1", "--executor")


def convert(tmp_path, name, *words):
    """Convert one pickle of that name; return the exit code."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / f"{name}.pyd").write_bytes(pickle.dumps(1))
    source = f"--writer=pickles:directory={tmp_path}/source,suffixes=pyd"
    return main.main(["convert", source, "--executor=serial", *words, f"{tmp_path}/"])


SPACED = """
from dataclasses import dataclass
from bionemo.webdatamodule import KeyEncoder, hookimpl

@dataclass(frozen=True, kw_only=True)
class Prefixed:
    prefix: str = ""

    def __call__(self, name):
        return self.prefix + name

@hookimpl
def webdatamodule_key_encoders():
    yield KeyEncoder(name="acme-keys", summary="keys with a prefix", factory=Prefixed)
"""


def test_convert_takes_options_of_writer_key_encoder_and_executor(install, tmp_path):
    """`--writer`, `--key-encoder` and `--executor` take options behind the name."""
    install("acme-keys", SPACED)

    assert 0 == convert(tmp_path, "a", "--key-encoder=acme-keys:prefix=id-", "--executor=processes:workers=1")
    with tarfile.open(tmp_path / "train" / "wdshards-000000.tar") as shard:
        assert ["id-a.pyd"] == shard.getnames()


@pytest.mark.parametrize("command", ["preview", "verify"])
def test_keys_are_escaped_for_the_terminal(tmp_path, capsys, command):
    """Control characters of keys, paths and values reach the terminal as text."""
    directory = tmp_path / f"d{ESCAPE}"
    directory.mkdir()
    with tarfile.open(directory / "wdshards-000000.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
        for suffix, data in (("txt", ESCAPE.encode()), ("y.pyd", b"no pickle")):
            member = tarfile.TarInfo(f"key-{ESCAPE}.{suffix}")
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    main.main([command, str(directory)])
    shown = "".join(capsys.readouterr())

    assert "red" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_errors_are_escaped_for_the_terminal(capsys):
    """The line that says how a command failed holds no control character."""
    assert 2 == main.main(["info", f"nowhere{ESCAPE}"])
    assert r"nowhere\x1b[31mred\x07\x9b\u202e" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plain µs\n\tx", "plain µs\n\tx"), ("a\rb", r"a\rb"), (ESCAPE, r"\x1b[31mred\x07\x9b\u202e"), ("\\x1b", "\\x1b")],
)
def test_control_characters_are_escaped_and_text_is_not(text, expected):
    """Newlines and tabs are text."""
    assert expected == output.escaped(text)


def test_json_goes_to_the_output_alone(capsys):
    """With `only_json` whatever else is printed goes to standard error."""
    with output.standard_output(only_json=True):
        print("a plugin speaks")
        output.print_json({"key": ESCAPE})
    shown = capsys.readouterr()

    assert ({"key": ESCAPE}, "a plugin speaks\n") == (json.loads(shown.out), shown.err)
