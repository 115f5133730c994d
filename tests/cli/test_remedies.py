"""Every remedy that a command names is carried out here: what fails, the words of the message, what works."""

import pickle
import re
import shutil
import tarfile
from io import BytesIO

import fsspec
import pytest

from bionemo.webdatamodule._cli.main import main

CONVERT = ["convert", "--option=directory=source", "--option=suffixes=pyd", "--executor=serial", "out-"]
PLAN = ["plan", "one", "--global-batch", "4"]
NEW = ["new-plugin", "--kind", "codec"]


def converted(*more, source="source", out="out-"):
    """Return the words of a conversion."""
    return ["convert", f"--option=directory={source}", "--option=suffixes=pyd", "--executor=serial", *more, out]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pickles, shards of them, two data sets in one directory, and a shard that another tool wrote."""
    base = tmp_path_factory.mktemp("made")
    for source, names in (("source", [f"s{number}" for number in range(10)]), ("odd", ["0.8", "0.9"])):
        (base / source).mkdir()
        for number, name in enumerate(names):
            (base / source / f"{name}.pyd").write_bytes(pickle.dumps(number))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        assert 0 == main(converted("--split=train=1.0", "--shards=2", out="one-"))
        for prefix in ("t", "u"):
            assert 0 == main(converted("--split=train=1.0", f"--prefix={prefix}", out="two-"))
    (base / "one-train").rename(base / "one")
    (base / "two-train").rename(base / "two")
    (base / "foreign").mkdir()
    with tarfile.open(base / "foreign" / "sa-000000.tar", "w") as tar:
        member = tarfile.TarInfo("k.txt")
        member.size = 2
        tar.addfile(member, BytesIO(b"ab"))
    (base / "stages_here.py").write_text("NUMBER = 3\n\n\ndef stage(samples):\n    return samples\n")
    return base


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it, which is the current directory, and is behind a URL as well."""
    shutil.copytree(made, tmp_path / "made")
    monkeypatch.chdir(tmp_path / "made")
    memory = fsspec.filesystem("memory")
    memory.put(str(made / "one"), "memory://remedies", recursive=True)
    yield tmp_path / "made"
    memory.rm("memory://remedies", recursive=True)


def lines_of(name, *lines):
    """Return what writes a file."""
    return lambda place: (place / name).write_text("\n".join(lines))


def removed(name):
    """Return what removes a folder."""
    return lambda place: shutil.rmtree(place / name)


def damage(place):
    """Change a byte of a shard."""
    (shard, *_) = sorted((place / "out-train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)


def without_index(place):
    """Change a byte of a shard, and remove its index."""
    damage(place)
    for index in (place / "out-train").glob("*.tar.*"):
        index.unlink()


def restored(place):
    """Remove the damaged shard."""
    min((place / "out-train").glob("*.tar")).unlink()


SPLIT = converted("--split=train=0.8", source="odd")
DAMAGED = [converted(), damage]
INDEX = ["index", "foreign", "--prefix", "sa"]

ROWS = {
    "several prefixes": (
        [["preview", "two"]],
        [("holds t, u; choose one with --prefix", [["preview", "two", "--prefix", "u"]])],
    ),
    "another prefix": (
        [["preview", "one", "--prefix", "nope"]],
        [(r"try (--prefix) (\S+)", lambda found: [["preview", "one", found[1], found[2]]])],
    ),
    "an option that is not there": (
        [["info", "one", "--prefx", "wdshards"]],
        [("did you mean '(--prefix)'", lambda found: [["info", "one", found[1], "wdshards"]])],
    ),
    "indexes of a local directory": ([[*INDEX, "--output", "x"]], [("leave out --output", [INDEX])]),
    "a manifest that is there": (
        [INDEX, INDEX],
        [("`webdatamodule verify` says", [["verify", "foreign"]]), ("--again takes them", [[*INDEX, "--again"]])],
    ),
    "no manifest": (
        [["verify", "foreign"]],
        [("run `webdatamodule index` first", [INDEX, ["verify", "foreign"]])],
    ),
    "a pattern in place of a directory": (
        [["verify", "memory://remedies/wdshards-{000000..000001}.tar"]],
        [("give its URL, (memory://remedies) ", lambda found: [["verify", found[1]], ["info", found[1]]])],
    ),
    "a pattern in place of a directory, with its prefix": (
        [["info", "memory://remedies/wdshards-{000000..000001}.tar", "--prefix", "wdshards"]],
        [("give its URL, (memory://remedies) ", lambda found: [["info", found[1]]])],
    ),
    "no such directory": ([["index", "nowhere"]], [("local directory; correct the path", [INDEX])]),
    "samples behind a URL": (
        [["verify", "memory://remedies", "--deep"]],
        [
            ("verify a local copy", [["verify", "one", "--deep"]]),
            ("or leave --deep out", [["verify", "memory://remedies"]]),
        ],
    ),
    "a source without samples": (
        [["convert", "--option=directory=source", "--option=suffixes=nope", "--executor=serial", "out-"]],
        [("correct --option", [converted()])],
    ),
    "a split without samples": (
        [converted("--split=train=")],
        [
            (r"write a part such as (train=0.8)", lambda found: [converted(f"--split={found[1]}")]),
            ("names", [converted("--split=train=s1,s2")]),
            ("or @FILE", [lines_of("names", "s1"), converted("--split=train=@names")]),
        ],
    ),
    "a part that is a name": (
        [SPLIT],
        [
            (r"write (train=\S+) for the part", lambda found: [converted(f"--split={found[1]}", source="odd")]),
            (r"write train=@FILE", [lines_of("names", "0.8"), converted("--split=train=@names", source="odd")]),
        ],
    ),
    "an option twice": (
        [converted("--option=directory=odd")],
        [("it takes no list; give it once", [converted()])],
    ),
    "a damaged shard": (
        [*DAMAGED, ["verify", "out-train"]],
        [("run the conversion again with --check", [converted("--check"), ["verify", "out-train"]])],
    ),
    "a damaged shard without its index": (
        [converted(), without_index, ["preview", "out-train"]],
        [
            ("run `webdatamodule convert` with --check", [converted("--check"), ["preview", "out-train"]]),
            ("or remove the shard and run the conversion again", [restored, converted(), ["preview", "out-train"]]),
        ],
    ),
    "weights in shards order": (
        [[*PLAN, "--weights", "1", "--order", "shards"]],
        [("--weights needs (--order global)", [[*PLAN, "--weights", "1", "--order", "global"]])],
    ),
    "weights that change": (
        [[*PLAN, "--weights-at", "5", "1", "--weights", "1", "--weights-at", "5"]],
        [("it takes a step and a weight for each", [[*PLAN, "--weights", "1", "--weights-at", "5", "1"]])],
    ),
    "weights that change without a beginning": (
        [[*PLAN, "--weights-at", "5", "1"]],
        [("--weights-at needs --weights", [[*PLAN, "--weights", "1", "--weights-at", "5", "1"]])],
    ),
    "a stage that is none": (
        [["bench", "one", "--stage", "stages_here:NUMBER", "--seconds", "0.01", "--workers", "0"]],
        [
            (
                "name a function",
                [["bench", "one", "--stage", "stages_here:stage", "--seconds", "0.01", "--workers", "0"]],
            )
        ],
    ),
    "a component that is not there": (
        [["plugins", "webloder"]],
        [("did you mean '(\\w+)'", lambda found: [["plugins", found[1]]])],
    ),
    "a name that cannot be used": (
        [[*NEW, "My_Codec"]],
        [("take lower-case letters, digits and single dashes", [[*NEW, "my-codec"]])],
    ),
    "a name of a default": ([[*NEW, "npy"]], [("take another", [[*NEW, "mine"]])]),
    "a package that is there": (
        [[*NEW, "mine"], [*NEW, "mine"]],
        [
            ("take another name", [[*NEW, "other"]]),
            ("or directory", [[*NEW, "mine", "--directory", "one"]]),
            ("or remove it", [removed("webdatamodule-mine"), [*NEW, "mine"]]),
        ],
    ),
    "a directory that is not there": (
        [[*NEW, "mine", "--directory", "nowhere"]],
        [("--directory is a directory that exists", [[*NEW, "mine", "--directory", "one"]])],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::bionemo.webdatamodule.errors.DataWarning")
@pytest.mark.parametrize(
    ("row", "number"), [(row, number) for row, (_, remedies) in ROWS.items() for number in range(len(remedies))]
)
def test_the_remedy_for_a_command_works(row, number, place, capsys):
    """The last command fails with the advice; after following it all commands succeed."""
    failing, remedies = ROWS[row]
    words, steps = remedies[number]
    outcomes = [run(step, place) for step in failing]
    message = "".join(capsys.readouterr())
    found = re.search(words, message, re.DOTALL)

    assert found, message
    assert not any(outcomes[:-1])
    assert outcomes[-1]
    outcomes = [run(step, place) for step in (steps(found) if callable(steps) else steps)]
    assert not any(outcomes), "".join(capsys.readouterr())


def run(step, place):
    """Return the exit code of a command; of another step nothing."""
    if callable(step):
        step(place)
        return 0
    return main(step)
