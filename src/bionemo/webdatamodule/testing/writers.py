"""What every writer has to do."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bionemo.webdatamodule.components import Codec, Sample, Writer
from bionemo.webdatamodule.errors import InputError, count
from bionemo.webdatamodule.names import suffix_problem
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.plugins import build, find
from bionemo.webdatamodule.testing.codecs import recoded, with_core_options
from bionemo.webdatamodule.testing.component import ComponentConformance, Subject
from bionemo.webdatamodule.testing.conversion import convert_samples, raw_samples
from bionemo.webdatamodule.testing.processes import ProcessError, in_fresh_process

_SHOW = 60


class WriterConformance(ComponentConformance):
    """Checks of a writer.

    Override the fixture ``options``, which makes a small source and returns the options for it,
    and ``expected``, which returns what is in the source: at least three samples, by name, their bytes by suffix.

    Attributes:
        missing: A name that the source does not have.
    """

    kind: ClassVar[type[Writer]] = Writer
    missing: ClassVar[str] = "no such sample"

    @pytest.fixture
    def expected(self) -> Mapping[str, Mapping[str, bytes]]:
        """The samples of the source: suffix to bytes, by name; override it."""
        raise NotImplementedError("override the fixture 'expected' of the test class")

    @pytest.fixture
    def names(self, expected: Mapping[str, Mapping[str, bytes]]) -> Sequence[str]:
        """Names of all samples of the source."""
        if len(expected) < 3:
            raise ValueError(
                "the fixture 'expected' needs three samples or more: fewer cannot show that one alone is read"
            )
        return tuple(expected)

    @pytest.fixture
    def reader(self, subject: Subject) -> Any:
        """A new working object."""
        return subject.make()

    def test_reads_what_is_there(
        self, subject: Subject, reader: Any, names: Sequence[str], expected: Mapping[str, Mapping[str, bytes]]
    ) -> None:
        """Each sample has its name and its fields, as bytes."""
        for name, sample in zip(names, read(subject, reader, names), strict=True):
            if not isinstance(sample, Sample):
                subject.wrong(f"it yields a {type(sample).__name__}", "yield bionemo.webdatamodule.Sample(name, files)")
            if not isinstance(sample.files, Mapping):
                subject.wrong(
                    f"the files of {name!r} are a {type(sample.files).__name__}",
                    "make them a mapping from suffix to bytes",
                )
            for suffix, data in sample.files.items():
                if not isinstance(data, bytes):
                    subject.wrong(
                        f"the field {suffix!r} of {name!r} is a {type(data).__name__}, not bytes",
                        "encode it, with bionemo.webdatamodule.pickles.dumps where nothing else fits",
                    )
            if dict(sample.files) != dict(expected[name]):
                subject.wrong(
                    f"sample {name!r} is {_brief(sample.files)}, not {_brief(expected[name])}",
                    "compare the reader with the fixture 'expected'",
                )

    def test_reads_only_what_is_asked_for_and_in_that_order(
        self, subject: Subject, reader: Any, names: Sequence[str]
    ) -> None:
        """The names asked for, no others, in the order asked for."""
        for wanted in (names[::-1], names[1:2], (names[-1], names[0])):
            got = [sample.name for sample in read(subject, reader, wanted)]
            if got != list(wanted):
                subject.wrong(
                    f"asked for {list(wanted)} it yields {got}", "yield one sample for each name, in the order of names"
                )

    def test_reads_again(self, subject: Subject, reader: Any, names: Sequence[str]) -> None:
        """A reader may be called many times, and gives the same each time."""
        if read(subject, reader, names) != read(subject, reader, names):
            subject.wrong(
                "a second call gives something else", "open the source in each call, and keep nothing between"
            )

    def test_reads_nothing_for_no_names(self, subject: Subject, reader: Any) -> None:
        """No names give no samples."""
        if got := read(subject, reader, ()):
            subject.wrong(f"without a name it yields {count(len(got), 'sample')}", "yield only what names lists")

    def test_reads_one_sample_at_a_time(self, subject: Subject, reader: Any, names: Sequence[str]) -> None:
        """Memory holds a sample or two, not all, however many names there are."""
        gc.collect()
        before = _living_samples()
        with subject.trying("reading", "make it read what the fixture 'expected' lists"):
            samples = reader(names)
            if not isinstance(samples, Iterator):
                subject.wrong(
                    f"calling it returns a {type(samples).__name__}", "make __call__ a generator that yields samples"
                )
            first = next(samples)
        living = _living_samples() - before
        if living > 2:
            subject.wrong(
                f"when it yields {first.name!r}, its first sample, there are {count(living, 'sample')}",
                "read each sample when its turn comes",
            )

    def test_missing_sample_is_an_error(self, subject: Subject, reader: Any, names: Sequence[str]) -> None:
        """A name that is not there is an error that says so, when its turn comes.

        The core then continues after it, so that a user sees all bad samples at once.
        """
        self._missing(subject, reader, (self.missing,), before=0)
        self._missing(subject, reader, (names[0], self.missing, names[1]), before=1)

    def _missing(self, subject: Subject, reader: Any, wanted: Sequence[str], *, before: int) -> None:
        remedy = "raise FileNotFoundError or InputError, with the name in the message, when its turn comes"
        got: list[str] = []
        try:
            got.extend(sample.name for sample in reader(wanted))
        except (FileNotFoundError, InputError) as error:
            if self.missing not in str(error):
                subject.wrong(
                    f"the error for the missing sample {self.missing!r} does not name it: {error}", remedy, error
                )
        except Exception as error:  # noqa: BLE001 - any other is the finding
            subject.wrong(f"the missing sample {self.missing!r} raises {type(error).__name__}: {error}", remedy, error)
        else:
            subject.wrong(
                f"the missing sample {self.missing!r} is passed over and it yields {count(len(got), 'sample')}", remedy
            )
        if len(got) != before:
            subject.wrong(
                f"asked for {list(wanted)} it yields {got} before the error, so the core would blame another sample",
                remedy,
            )

    def test_suffixes_can_be_stored(self, subject: Subject, reader: Any, names: Sequence[str]) -> None:
        """Suffixes come back from a tar as they are."""
        for sample in read(subject, reader, names):
            for suffix in sample.files:
                problem = suffix_problem(suffix)
                if not problem and suffix != suffix.lower():
                    problem = "has upper case, which webdataset's readers turn to lower case"
                if problem:
                    subject.wrong(
                        f"the suffix {suffix!r} of {sample.name!r} {problem}", "use a suffix such as 'image.jpg'"
                    )

    def test_names_lists_the_source(self, subject: Subject, reader: Any, names: Sequence[str]) -> None:
        """``names()``, where there is one, lists each sample once, in a repeatable order."""
        if not hasattr(reader, "names"):
            return
        with subject.trying("names()", "make it list the source"):
            listed = reader.names()
            again = subject.make().names()
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            subject.wrong(f"names() returns a {type(listed).__name__}", "return a list of strings")
        if list(listed) != list(again):
            subject.wrong("names() of two readers differ in order", "sort what the system lists")
        if sorted(listed) != sorted(names):
            subject.wrong(
                f"names() gives {_brief(sorted(listed))}, the source has {_brief(sorted(names))}",
                "list every sample once, under the name by which it can be read",
            )

    def test_fingerprints_are_stable(self, subject: Subject, reader: Any, names: Sequence[str]) -> None:
        """``fingerprints(names)``, where there is one, gives each name a string that stays while the source does."""
        if not hasattr(reader, "fingerprints"):
            return
        with subject.trying("fingerprints(names)", "give each name a short string, such as size and mtime"):
            marks = list(reader.fingerprints(names))
            missing = list(reader.fingerprints([names[0], self.missing]))
            again = list(subject.make().fingerprints(names))
        if len(marks) != len(names) or not all(isinstance(mark, str) for mark in marks):
            subject.wrong(
                f"fingerprints(names) gives {_brief(marks)} for {count(len(names), 'name')}",
                "return one string for each name",
            )
        if marks != again:
            subject.wrong(
                "fingerprints(names) changes while the source does not, so every conversion would start again",
                "use size and modification time, no hash() or id()",
            )
        if missing != [marks[0], ""]:
            subject.wrong(
                f"fingerprints(names) gives {_brief(missing)} for one sample and a missing one",
                "return '' for a missing sample; reading it raises the error",
            )

    def change_source(self, options: Mapping[str, Any]) -> str | None:
        """Change the bytes of one sample in the source and return its name; override it.

        The fingerprint of that sample has to change. Without it only fingerprints that are the same for all samples
        are checked: they have to change with the times of the files that the options name.
        """
        del options
        return None

    def test_fingerprints_change_with_the_source(
        self, subject: Subject, reader: Any, names: Sequence[str], options: Mapping[str, Any]
    ) -> None:
        """A sample that changed has another fingerprint, or its old shard would be kept for good."""
        if not hasattr(reader, "fingerprints"):
            return
        before = dict(zip(names, reader.fingerprints(names), strict=True))
        changed = self.change_source(options)
        if changed is None and len(set(before.values())) > 1:
            return
        if changed is None:
            _touch(options)
        after = dict(zip(names, subject.make().fingerprints(names), strict=True))
        kept = changed or names[0]
        if before[kept] == after[kept]:
            subject.wrong(
                f"{kept!r} has the fingerprint {after[kept]!r} also after its source changed, so its old bytes would "
                "be kept",
                "make it of size and modification time of the sample's file, or override change_source() in the test "
                "class if the source is not a file",
            )

    def test_reads_the_same_after_pickling(self, subject: Subject, names: Sequence[str]) -> None:
        """A reader that was pickled, also while it was in use, reads the same."""
        used = subject.make()
        before = read(subject, used, names)
        with subject.trying("pickling a reader that has read", "keep no open files or caches in the reader"):
            copy = pickle.loads(pickle.dumps(used))
        if read(subject, copy, names) != before:
            subject.wrong("its copy by pickle reads something else", "keep all options in the pickled state")

    def test_reads_the_same_in_another_process(self, subject: Subject, reader: Any, names: Sequence[str]) -> None:
        """A shard may be written by any process of any machine."""
        try:
            there = in_fresh_process(_pairs, reader, names)
        except ProcessError as error:
            subject.wrong(f"reading in a fresh process fails: {error}", "keep its classes importable by name", error)
        if there != [(sample.name, dict(sample.files)) for sample in read(subject, reader, names)]:
            subject.wrong(
                "another process reads something else",
                "let nothing depend on hash(), the order of sets, time or chance",
            )

    def test_bytes_survive_conversion(
        self, subject: Subject, reader: Any, names: Sequence[str], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Stock webdataset reads from the shards what the reader delivered, or what its codec recodes that to."""
        with subject.trying("conversion", "correct the cause above"):
            shards = convert_samples(reader, names, str(tmp_path_factory.mktemp("converted")))
        stored = raw_samples(shards.paths)
        for sample in read(subject, reader, names):
            key = shards.keys[sample.name]
            for suffix, data in sample.files.items():
                read_back = stored.get(key, {}).get(suffix)
                if read_back != data and read_back != _canonical(shards.codecs.get(suffix, "bytes"), data):
                    subject.wrong(
                        f"webdataset reads the field {suffix!r} of {sample.name!r} as {_brief(read_back)}",
                        "deliver bytes and let the core store them",
                    )


def read(subject: Subject, reader: Any, names: Sequence[str]) -> list[Sample]:
    """Return the samples of these names; an exception fails the test."""
    with subject.trying(f"reading {_brief(list(names))}", "make it read what the fixture 'expected' lists"):
        return list(reader(names))


def _pairs(reader: Any, names: Sequence[str]) -> list[tuple[str, dict[str, bytes]]]:
    return [(sample.name, dict(sample.files)) for sample in reader(names)]


def _touch(options: Mapping[str, Any]) -> None:
    """Give the files that options name, and those in directories that they name, a later time."""
    words = [word for value in options.values() for word in ([value] if isinstance(value, str) else _texts(value))]
    for path in (Path(word) for word in words if Path(word).exists()):
        for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
            later = file.stat().st_mtime_ns + 10**9
            os.utime(file, ns=(later, later))


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


def _living_samples() -> int:
    return sum(type(thing) is Sample for thing in gc.get_objects())


def _canonical(codec: str, data: bytes) -> bytes:
    """Return the form in which a conversion stores a field, by the name of its codec."""
    component = find(Codec, codec)
    made = build(component, with_core_options(component, {}, Policy(pickles="trusted")))
    return recoded(made, data) if hasattr(made, "recode") else data


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOW else f"{text[: _SHOW - 1]}…"
