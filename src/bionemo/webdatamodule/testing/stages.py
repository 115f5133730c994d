"""What every stage has to do."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import pytest

from bionemo.webdatamodule import context
from bionemo.webdatamodule.columns import Fields, ValueColumn, is_fields, samples_of
from bionemo.webdatamodule.components import Stage
from bionemo.webdatamodule.errors import count
from bionemo.webdatamodule.testing.compare import same
from bionemo.webdatamodule.testing.component import ComponentConformance, NonconformingError, Subject
from bionemo.webdatamodule.testing.processes import ProcessError, in_fresh_process


class StageConformance(ComponentConformance):
    """Checks of a stage.

    Override the fixture ``samples``, and ``options`` where the stage needs any.
    Options and samples go to another process, so functions among them must be importable by name.

    Attributes:
        in_place: The stage may change the samples that it gets.
        ahead: How many samples it may take before it yields the first; ``None`` for a stage that takes all first, such
            as one that returns a list. It suits shares, the parts of a global batch, not streams.
    """

    kind: ClassVar[type[Stage]] = Stage
    in_place: ClassVar[bool] = False
    ahead: ClassVar[int | None] = 10_000

    @pytest.fixture
    def samples(self) -> Sequence[Any]:
        """A few samples as the stage gets them; override it."""
        raise NotImplementedError("override the fixture 'samples' of the test class")

    @pytest.fixture
    def expected(self) -> Sequence[Any] | None:
        """What the stage makes of the samples; override it to have that checked too."""
        return None

    def test_gives_what_is_expected(
        self, subject: Subject, samples: Sequence[Any], expected: Sequence[Any] | None
    ) -> None:
        """The stage does its work."""
        got = _run(subject, samples)
        if expected is not None and not same(got, list(expected)):
            subject.wrong(f"it makes {got!r:.200} of the samples, not {list(expected)!r:.200}", "compare the two")

    def test_takes_samples_only_as_it_needs_them(self, subject: Subject, samples: Sequence[Any]) -> None:
        """An endless stream gives a first sample; nothing is collected first."""
        most = self.ahead
        if most is None:
            return
        stage = subject.make()
        taken = 0

        def endless() -> Iterator[Any]:
            nonlocal taken
            for sample in itertools.cycle(samples):
                taken += 1
                if taken > most:
                    raise _TooFarError
                yield copy.deepcopy(sample)

        try:
            next(iter(stage(endless())))
        except _TooFarError:
            subject.wrong(
                f"it took {count(most, 'sample')} and yielded none",
                "yield as you go; a stage that must look further ahead says so with 'ahead' in its test class, and "
                "ahead = None says that it takes all samples first",
            )
        except StopIteration:
            subject.wrong("it ends before an endless input does, with nothing yielded", "pass on what it can")

    def test_empty_input_gives_empty_output(self, subject: Subject) -> None:
        """A worker may have no samples at all."""
        if got := _run(subject, []):
            subject.wrong(f"without input it yields {got!r:.200}", "end when the input ends")

    def test_does_not_change_its_input(self, subject: Subject, samples: Sequence[Any]) -> None:
        """Samples belong to who made them, unless the stage says that it changes them."""
        if self.in_place:
            return
        given = [copy.deepcopy(sample) for sample in samples]
        with subject.trying("running over the samples", "make it take what the fixture 'samples' gives"):
            list(subject.make()(iter(given)))
        if not same(given, list(samples)):
            subject.wrong(
                "it changes the samples that it gets",
                "change a copy, or set in_place = True in the test class and say so in the docstring",
            )

    def test_does_the_same_every_time(self, subject: Subject, samples: Sequence[Any]) -> None:
        """The same samples give the same result, from one object twice and from another."""
        stage = subject.make()
        first = _run(subject, samples, stage)
        if not same(first, _run(subject, samples, stage)):
            subject.wrong(
                "a second pass over the same samples gives something else",
                "keep nothing from one call to the next; a loader calls a stage once an epoch",
            )
        if not same(first, _run(subject, samples)):
            subject.wrong(
                "two objects with the same options do different things",
                "draw chance from an option 'seed' or bionemo.webdatamodule's context, not from the global generator",
            )

    def test_works_in_a_spawned_worker(self, subject: Subject, samples: Sequence[Any]) -> None:
        """A worker that starts from nothing gives the same as this process."""
        with subject.trying("pickling it with its samples", "use functions that are importable by name"):
            here = _run(subject, samples)
            try:
                there = in_fresh_process(_collect, subject.make(), [copy.deepcopy(sample) for sample in samples])
            except ProcessError as error:
                subject.wrong(f"it fails in a spawned worker: {error}", "keep its classes importable by name", error)
        if not same(here, there):
            subject.wrong(
                f"a spawned worker gives {there!r:.200}, this process {here!r:.200}",
                "let nothing depend on hash(), the order of sets, or what was set up in the main process",
            )

    def test_columnar_form_gives_the_same(self, subject: Subject, samples: Sequence[Any]) -> None:
        """``columns(fields)``, where there is one, makes of a share what the stage makes of its samples."""
        stage = subject.make()
        if not hasattr(stage, "columns"):
            return
        with context.at(context.Context(order="global", batch_size=len(samples))):
            with subject.trying("columns(fields)", "return NotImplemented for columns that it does not take"):
                made = stage.columns(_fields(samples))
            if made is NotImplemented:
                return
            got = samples_of(made) if is_fields(made) else [made]
            wanted = _run(subject, samples, stage)
        if not same(got, wanted):
            subject.wrong(
                f"columns() gives {got!r:.200}, and the samples become {wanted!r:.200}",
                "make both alike, or return NotImplemented",
            )

    def test_errors_of_the_input_pass(self, subject: Subject, samples: Sequence[Any]) -> None:
        """An error while samples are read reaches the training loop."""

        def failing() -> Iterator[Any]:
            yield from (copy.deepcopy(sample) for sample in samples)
            raise _BrokenInputError

        try:
            got = list(subject.make()(failing()))
        except _BrokenInputError:
            return
        except NonconformingError:
            raise
        except Exception as error:  # noqa: BLE001 - any other is the finding
            subject.wrong(f"an error of the input becomes {type(error).__name__}", "let it pass", error)
        subject.wrong(f"it swallows an error of its input and yields {len(got)} results", "let it pass")


class _TooFarError(Exception):
    """The stage asked for more samples than it may."""


class _BrokenInputError(Exception):
    """What the input of a stage raises in a test."""


def _run(subject: Subject, samples: Iterable[Any], stage: Any = None) -> list[Any]:
    with subject.trying("running over the samples", "make it take what the fixture 'samples' gives"):
        results = (subject.make() if stage is None else stage)(copy.deepcopy(sample) for sample in samples)
        if not isinstance(results, Iterable):
            subject.wrong(
                f"calling it returns a {type(results).__name__}", "make __call__ a generator, or return a list"
            )
        return [copy.deepcopy(result) for result in results]


def _fields(samples: Sequence[Any]) -> Fields:
    """Return the columns of samples that are tuples, dictionaries or values."""
    if samples and all(isinstance(sample, tuple) for sample in samples):
        return tuple(ValueColumn(values) for values in zip(*samples, strict=True))
    if samples and all(isinstance(sample, dict) for sample in samples):
        return {name: ValueColumn([sample[name] for sample in samples]) for name in samples[0]}
    return ValueColumn(samples)


def _collect(stage: Any, samples: Sequence[Any]) -> list[Any]:
    return list(stage(iter(samples)))
