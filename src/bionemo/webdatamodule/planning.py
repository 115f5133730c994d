"""Tools for planner stages: the protocol of an epoch plan, an implementation, permutations, and equal division.

A planner's ``plan(sizes, request)`` returns an :class:`EpochPlan`. :class:`ListedPlan` is one for batches that can be
listed: it divides the list among ranks and resumes at any place.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from bionemo.webdatamodule._engine.sampling.grouped import GroupedPlan
from bionemo.webdatamodule._engine.sampling.mixture import apportion
from bionemo.webdatamodule._engine.sampling.partition import divide_last, part
from bionemo.webdatamodule._engine.sampling.permutation import Ids, Permutation, permutation
from bionemo.webdatamodule._engine.sampling.plan import Plan, Source
from bionemo.webdatamodule.errors import PlanError, count

__all__ = [
    "Batches",
    "EpochPlan",
    "Ids",
    "ListedPlan",
    "Permutation",
    "PlanRequest",
    "apportion",
    "divide_last",
    "grouped_plan",
    "part",
    "permutation",
    "size_of",
]


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The user's choices, for a planner.

    Attributes:
        seed: The seed of all random numbers.
        shuffle: True for training; false for evaluation, whose order is the same in every epoch.
        global_batch_size: Samples of a batch, summed over all ranks; a planner may have its own limits instead.
        tail: What happens in training to samples that do not fill a batch.
    """

    seed: int
    shuffle: bool
    global_batch_size: int
    tail: Literal["share", "drop", "fill"] = "share"


@runtime_checkable
class EpochPlan(Protocol):
    """The samples of each rank at each step of an epoch, as pure functions of integers.

    ``start`` is the number of consumed samples of the epoch, as :meth:`consumed` returns it; batches are counted from
    there. A plan that starts at any batch boundary must give the remaining batches. Plans pickle.

    Attributes:
        n_samples: Samples of one epoch.
        seed: The seed of the request.
        global_batch_size: Samples of a global batch; 0 where it varies.
        digest: A short text without a slash that identifies everything that decides the batches, except the seed, the
            batch size and the data, such as 16 hexadecimal digits.
    """

    @property
    def n_samples(self) -> int: ...  # noqa: D102 - see the class
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def global_batch_size(self) -> int: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102

    def n_batches(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the number of steps after ``start``, the same on every rank; from 0 on the same in all epochs."""
        ...

    def shares(self, epoch: int, batches: Sequence[int], rank: int, world_size: int, *, start: int = 0) -> list[Ids]:
        """Return the numbers of the samples that a rank takes at each of some steps; never none.

        Raises:
            IndexError: If there is no such step.
        """
        ...

    def consumed(self, batches: int, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples of the epoch that are consumed after so many steps, ``start`` included."""
        ...

    def unserved(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples at the end of the epoch that no step takes."""
        ...

    def check(self, world_size: int) -> None:
        """Raise a :class:`~bionemo.webdatamodule.errors.PlanError` if the plan cannot serve this number of ranks."""
        ...


Batches: TypeAlias = Callable[[int], tuple[Ids, Ids]]
"""Lists an epoch: its sample numbers in order, ``(n,)``, and the batch boundaries, ``(b + 1,)``.

It is a pure function of the epoch, returns the same number of batches for every epoch, and pickles.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class ListedPlan:
    """An :class:`EpochPlan` of batches that are listed for a whole epoch; at each step each rank takes the next one.

    If the number of batches is not a multiple of the ranks, the last batches are divided until it is
    (:func:`divide_last`). So all ranks take equal steps, every sample is used once, and all but the last batches are
    the same for any number of ranks.

    Attributes:
        batches: Lists the batches of an epoch.
        n_samples: Samples of one epoch.
        seed: The seed of the request.
        digest: A short text that identifies everything that decides the batches, except the seed and the data.
        global_batch_size: 0, because the number of samples in a batch varies.
    """

    batches: Batches = field(repr=False)
    n_samples: int
    seed: int
    digest: str
    global_batch_size: int = field(init=False, default=0)
    _listed: dict[int, tuple[Ids, Ids]] = field(init=False, repr=False, default_factory=dict)
    _divided: dict[tuple[int, int, int], Ids] = field(init=False, repr=False, default_factory=dict)

    def n_batches(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the number of steps after ``start``, the same on every rank."""
        return (len(self._edges(epoch, start, world_size)) - 1) // world_size

    def shares(self, epoch: int, batches: Sequence[int], rank: int, world_size: int, *, start: int = 0) -> list[Ids]:
        """Return the numbers of the samples that a rank takes at each of some steps; never none.

        Raises:
            IndexError: If there is no such step.
        """
        ids, edges = self._list(epoch)[0], self._edges(epoch, start, world_size)
        steps = (len(edges) - 1) // world_size
        for batch in batches:
            if not 0 <= batch < steps:
                raise IndexError(
                    f"there is no batch {batch}: {count(world_size, 'rank')} can take {steps} from sample {start} on"
                )
        places = [batch * world_size + rank for batch in batches]
        return [ids[edges[place] : edges[place + 1]] for place in places]

    def consumed(self, batches: int, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples of the epoch that are consumed after so many steps, ``start`` included.

        Raises:
            IndexError: If there are not so many.
        """
        return int(self._edges(epoch, start, world_size)[batches * world_size])

    def unserved(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples at the end of the epoch that no step takes.

        There are some only after a change of the number of ranks so near the end of an epoch that too few samples
        are left for equal steps.
        """
        return self.n_samples - int(self._edges(epoch, start, world_size)[-1])

    def check(self, world_size: int) -> None:
        """Check that every rank gets a sample at every step, and every sample comes.

        Raises:
            PlanError: If not, with the numbers; the same on every rank.
        """
        if world_size < 1 or self.unserved(world_size):
            raise PlanError(
                f"{count(self.n_samples, 'sample')} in {count(len(self._list(0)[1]) - 1, 'batch', 'batches')} cannot "
                f"give equal steps on {count(world_size, 'rank')}; use fewer ranks"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling, without the lists of epochs, which are made again."""
        return {**self.__dict__, "_listed": {}, "_divided": {}}

    def _list(self, epoch: int) -> tuple[Ids, Ids]:
        if epoch not in self._listed:
            _make_room(self._listed, 2)  # this epoch and the next
            self._listed[epoch] = self.batches(epoch)
        return self._listed[epoch]

    def _edges(self, epoch: int, start: int, world_size: int) -> Ids:
        """Return where each rank's batches begin, from ``start`` on, and where the last ends."""
        place = epoch, start, world_size
        if place not in self._divided:
            edges = self._list(epoch)[1]
            rest = np.append(start, edges[np.searchsorted(edges, start, side="right") :])
            _make_room(self._divided, 6)
            self._divided[place] = divide_last(rest, world_size)
        return self._divided[place]


def grouped_plan(
    groups: Sequence[Ids], weights: Sequence[float], request: PlanRequest, *, n_samples: int, reshuffle: bool = False
) -> EpochPlan:
    """Return a plan that draws from groups of samples in fixed proportions, in batches of ``global_batch_size``.

    Each epoch has the exact part of every group, see :func:`apportion`. A group is shuffled and used completely before
    its samples repeat. In evaluation every sample of the groups is used once, in order.

    Args:
        groups: The numbers of the samples of each group, none empty.
        weights: One positive number for each group, in any unit.
        request: What the user chose.
        n_samples: Samples of an epoch.
        reshuffle: Shuffle every group before each epoch, so that no sample repeats within an epoch if the group is
            large enough.

    Raises:
        PlanError: If the groups are too small.
    """
    sources = tuple(
        Source(samples=len(group), weight=weight if request.shuffle else None)
        for group, weight in zip(groups, weights, strict=True)
    )
    plan = Plan(
        sources=sources,
        global_batch_size=request.global_batch_size,
        n_samples=n_samples if request.shuffle else 0,
        seed=request.seed,
        shuffle=request.shuffle,
        tail=request.tail,
    )
    return GroupedPlan(plan=plan, ids=np.concatenate(groups), reshuffle=reshuffle)


def size_of(value: Any, name: str = "a value") -> int:
    """Return the size of a field: the value of a number, the length of text, bytes, sequences, arrays and tensors.

    Args:
        value: The value of the field.
        name: Its name, for the message.

    Raises:
        PlanError: If it has no meaningful length, such as a dictionary.
    """
    if getattr(value, "ndim", 0):  # before numbers, which tensors with one element pass for
        return len(value)
    number = value.item() if getattr(value, "ndim", -1) == 0 else value
    if isinstance(number, float) and number.is_integer():
        return int(number)
    with contextlib.suppress(TypeError):
        return operator.index(number)
    if isinstance(value, Sequence | bytearray | memoryview):
        return len(value)
    raise PlanError(
        f"{name} is {_described(value)}, which has no size; give as size a function of the sample, such as one that "
        "returns len(value['tokens']), or the suffix of a number, text, a list, an array or a tensor"
    )


def _described(value: object) -> str:
    if isinstance(value, dict):
        return f"a dictionary with {', '.join(map(repr, list(value)[:4]))}{' …' if len(value) > 4 else ''}"
    return repr(value) if isinstance(value, float) or value is None else f"a {type(value).__name__}"


def _make_room(kept: dict[Any, Any], most: int) -> None:
    while len(kept) >= most:
        kept.pop(next(iter(kept)))
