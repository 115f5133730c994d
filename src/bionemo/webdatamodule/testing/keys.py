"""What every key encoder has to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest

from bionemo.webdatamodule.components import KeyEncoder
from bionemo.webdatamodule.names import key_problem
from bionemo.webdatamodule.testing.component import ComponentConformance, Subject
from bionemo.webdatamodule.testing.processes import ProcessError, in_fresh_process

ORDINARY = ("a", "A", "a-b", "a_b", "a.b", "a.b.c", "a..b", "b.", "0001", "1e-5", "sp|P69905.2|HBA", "two words")
"""Names that any encoder has to take."""

NASTY = (
    "dir/a",
    "dir/a.b",
    "dir.x/a",
    "dir/.hidden",
    ".hidden",
    "..",
    "../a",
    "/a",
    "a/",
    "a%2eb",
    "a%b",
    "__a__",
    "__meta__/a",
    "__key__",
    "tab\tname",
    "line\nname",
    "ä",
    "a\u0308",
    "名前",
    "🧬",
    "lone\udce4surrogate",
    "n" * 300,
    "[a]?*",
    "a;b,c=d",
    " ",
)
"""Names that an encoder has to encode well or refuse, or whose keys the core has to refuse."""


class KeyEncoderConformance(ComponentConformance):
    """Checks of a key encoder.

    Attributes:
        collides: Some names share a key. The core then refuses to convert such names together.
        takes_any_name: Every name gets a key that can be stored. Without this claim only ordinary names must, such as
            ``a.b`` and ``sp|P69905.2|HBA``. For others, such as ``dir/a`` or an empty line, the encoder may raise a
            ``ValueError`` that says why, or give a key that the core refuses.
    """

    kind: ClassVar[type[KeyEncoder]] = KeyEncoder
    collides: ClassVar[bool] = False
    takes_any_name: ClassVar[bool] = False

    @pytest.fixture
    def encode(self, subject: Subject) -> Callable[[str], str]:
        """A new working object."""
        return subject.make()  # type: ignore[no-any-return]

    def test_keys_are_text(self, subject: Subject, encode: Callable[[str], str]) -> None:
        """Every name gets a string, unless it is an odd one that the encoder refuses."""
        for name in (*ORDINARY, *NASTY) if self.takes_any_name else (*ORDINARY, *_taken(encode, NASTY)):
            remedy = "return a key for it; the core checks it"
            if name in NASTY and not self.takes_any_name:
                remedy = f"{remedy}, or raise a ValueError whose message says why the name cannot be used"
            with subject.trying(f"encoding {name!r}", remedy):
                key = encode(name)
            if not isinstance(key, str):
                subject.wrong(f"the key of {name!r} is a {type(key).__name__}", "return a string")

    def test_webdataset_reads_the_keys_back(self, subject: Subject, encode: Callable[[str], str]) -> None:
        """A tar reader splits ``key.suffix`` where it was put together, and takes no sample for metadata."""
        from webdataset.tariterators import base_plus_ext

        for name in (*ORDINARY, *NASTY) if self.takes_any_name else ORDINARY:
            key = encode(name)
            problem = key_problem(key)
            if not problem and base_plus_ext(f"{key}.x.pyd") != (key, "x.pyd"):
                problem = f"webdataset reads as {base_plus_ext(f'{key}.x.pyd')[0]!r}"
            if problem:
                subject.wrong(
                    f"{name!r} gets the key {key!r}, which {problem}",
                    "leave no dot in the last part of a key, and no leading slash",
                )

    def test_names_get_keys_of_their_own(self, subject: Subject, encode: Callable[[str], str]) -> None:
        """Two names have two keys, unless the encoder is known to collide."""
        if self.collides:
            return
        names: dict[str, str] = {}
        for name in _taken(encode, (*ORDINARY, *NASTY)):
            key = encode(name)
            if key in names:
                subject.wrong(
                    f"{names[key]!r} and {name!r} both get the key {key!r}",
                    "escape characters instead of dropping them, or set collides = True in the test class",
                )
            names[key] = name

    def test_encodes_the_same_always_and_everywhere(self, subject: Subject, encode: Callable[[str], str]) -> None:
        """A key depends on the name alone, not on the process, the time or the names before."""
        names = _taken(encode, (*ORDINARY, *NASTY))
        here = _encode_all(encode, names)
        try:
            there = in_fresh_process(_encode_all, encode, names)
        except ProcessError as error:
            subject.wrong(f"encoding in a fresh process fails: {error}", "keep it importable by name", error)
        for name, one, again, other in zip(names, here, _encode_all(encode, names), there, strict=True):
            if not one == again == other:
                subject.wrong(
                    f"{name!r} gets the keys {one!r}, {again!r} and, in another process, {other!r}",
                    "let the key depend on the name alone: no hash(), no counter, no chance",
                )


def _taken(encode: Callable[[str], str], names: Sequence[str]) -> list[str]:
    """Return the names that an encoder does not refuse."""
    return [name for name in names if not _refuses(encode, name)]


def _refuses(encode: Callable[[str], str], name: str) -> bool:
    """Return whether an encoder raises a ``ValueError`` for a name, and says why."""
    try:
        encode(name)
    except ValueError as error:
        return bool(str(error))
    except Exception:  # noqa: BLE001 - that is no refusal, and comes again where the key is needed
        return False
    return False


def _encode_all(encode: Callable[[str], str], names: Sequence[str]) -> list[str]:
    return [encode(name) for name in names]
