"""Resume, tried after every single step."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from bionemo.webdatamodule.testing.compare import same


class Resumable(Protocol):
    """A loader, or any iterable, that can save where it is and go on from there."""

    def __iter__(self) -> Iterator[Any]:
        """Start an epoch, or go on with the one that was loaded."""
        ...

    def state_dict(self) -> Any:
        """Return where it is."""
        ...

    def load_state_dict(self, state: Any, /) -> None:
        """Go there; the next ``iter`` gives what comes next."""
        ...


def checkpoint_every_step(
    make: Callable[[], Resumable],
    *,
    epochs: int = 1,
    stepped: Callable[[Any], None] | None = None,
) -> int:
    """Save the state after every batch, restore it into a new object, and compare all that is left, exactly.

    The idea is that of grain's test of iterators: one pass over the data, and a resume from everywhere.
    A state saved behind the last batch of an epoch may lead to an empty pass or to the next epoch;
    what counts is that the batches from there on are the same.
    States go through pickle, as in a checkpoint.

    Args:
        make: Returns a new object that is set up in the same way each time.
        epochs: How many epochs to go through. Each restored object runs to the end of the last.
        stepped: Called with the object after each batch, where it counts steps rather than batches handed out.

    Returns:
        How many states were tried.

    Raises:
        AssertionError: If a restored object gives other batches; says after which step, and which batch differs.
        ValueError: If an epoch has no batches, so nothing would be checked.
    """
    told = stepped or (lambda _: None)
    source = make()
    start = pickle.dumps(source.state_dict())
    batches: list[Any] = []
    states: list[bytes] = [start]
    for _ in range(epochs):
        before = len(batches)
        for batch in source:
            told(source)
            batches.append(pickle.dumps(batch))  # a copy, should the loader use the memory again
            states.append(pickle.dumps(source.state_dict()))
        if len(batches) == before:
            raise ValueError("an epoch without batches shows nothing about resume")
    for step, state in enumerate(states):
        restored = make()
        restored.load_state_dict(pickle.loads(state))
        rest = _take(restored, len(batches) - step, told)
        _compare(step, rest, [pickle.loads(batch) for batch in batches[step:]])
    return len(states)


def _take(source: Resumable, count: int, told: Callable[[Any], None]) -> list[Any]:
    """Return the next batches, over the ends of epochs; two empty passes in a row are an end."""
    taken: list[Any] = []
    empty = 0
    while len(taken) < count and empty < 2:
        before = len(taken)
        for batch in itertools.islice(source, count - before):
            told(source)
            taken.append(pickle.loads(pickle.dumps(batch)))
        empty = 0 if len(taken) > before else empty + 1
    return taken


def _compare(step: int, got: list[Any], expected: Iterable[Any]) -> None:
    expected = list(expected)
    for number, (one, other) in enumerate(zip(got, expected, strict=False)):
        if not same(one, other):
            raise AssertionError(
                f"resumed after step {step}, batch {step + number} is {one!r:.200}; "
                f"without the interruption it is {other!r:.200}"
            )
    if len(got) != len(expected):
        raise AssertionError(
            f"resumed after step {step}, {len(got)} batches come, without the interruption {len(expected)}"
        )
