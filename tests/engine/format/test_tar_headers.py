import tarfile

import pytest

from bionemo.webdatamodule._engine.format.tar_headers import BLOCK, check_header, plain_sizes, sound_headers
from bionemo.webdatamodule.errors import CorruptShardError


def header(name, form=tarfile.USTAR_FORMAT):
    """The header of a member."""
    member = tarfile.TarInfo(name)
    member.size = 1000 * len(name)
    return member.tobuf(form)


def is_sound(block):
    """Whether a header passes by itself."""
    try:
        check_header(block, 0)
    except CorruptShardError:
        return False
    return True


def test_headers_are_sound_together_as_each_alone():
    """One, many, and none."""
    blocks = [header(name) for name in ("a.pyd", "b/c.jpg", "\N{LATIN SMALL LETTER A WITH DIAERESIS}.txt")]
    assert [True] * 3 == sound_headers(b"".join(blocks)).tolist()
    assert [] == sound_headers(b"").tolist()


@pytest.mark.parametrize("change", [1, 8, 0x80, 0xFF])
def test_no_changed_header_is_sound_among_others(change):
    """Every byte, one after the other; what is not sound together is looked at alone."""
    good = header("name.pyd")
    changed = []
    for place in range(BLOCK):
        block = bytearray(good)
        block[place] ^= change
        changed.append(bytes(block))
    found = sound_headers(b"".join([*changed, good])).tolist()
    assert [False] * BLOCK + [True] == found


@pytest.mark.parametrize("written", [b"%06o \0", b"%6o\0 ", b"%06o\0\0", b"%07o\0"])
def test_unusual_checksums_are_looked_at_alone(written):
    """Right as they may be."""
    block = bytearray(header("name.pyd"))
    block[148:156] = b" " * 8
    block[148:156] = (written % sum(block)).ljust(8)
    assert [False] == sound_headers(bytes(block)).tolist()


def test_what_passes_together_passes_alone():
    """Changed in two bytes that make up for one another, as no sum notices."""
    block = bytearray(header("ab.pyd"))
    block[0], block[1] = block[1], block[0]
    assert [is_sound(bytes(block))] == sound_headers(bytes(block)).tolist()


@pytest.mark.parametrize(
    ("written", "kind", "expected"),
    [
        (b"%011o\0", b"0", 6000),
        (b"%011o ", b"\0", 6000),
        (b"%11o\0", b"0", -1),
        (b"%10o \0", b"0", -1),
        (b"%012o", b"0", 6000 // 8),
        (b"%011o\0", b"x", -1),
        (b"%011o\0", b"g", -1),
        (b"%011o\0", b"X", -1),
        (b"%011o\0", b"L", -1),
        (b"%011o\0", b"K", -1),
    ],
)
def test_sizes_are_read_together_where_each_is_written_as_usual(written, kind, expected):
    """In eleven digits, and not of a header that describes the next."""
    block = bytearray(header("ab.pyd"))
    block[124:136] = written % 6000
    block[156:157] = kind
    assert [6000, expected] == plain_sizes(header("ab.pyd") + bytes(block)).tolist()
