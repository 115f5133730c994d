"""The planner ``pack``: whole samples up to a total size, joined without padding for variable-length attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bionemo.webdatamodule import context
from bionemo.webdatamodule.builtins.batching import Collate, collated, collation
from bionemo.webdatamodule.builtins.packing import check_size, pack_plan, pack_stream
from bionemo.webdatamodule.columns import Fields, collate_values, samples_of
from bionemo.webdatamodule.components import Stage
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.hookspecs import hookimpl
from bionemo.webdatamodule.options import one_of, whole_number
from bionemo.webdatamodule.planning import Ids, ListedPlan, PlanRequest, size_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Join whole samples whose sizes sum to at most a limit, such as 8,192 tokens, without padding.

    As the first stage of ``pipeline_prebatch_wld`` in global order it decides the plan: sizes are read once at setup,
    every rank takes one pack at each step, all take the same number of steps, and ``global_batch_size`` is ignored.
    In shards order it packs the stream.

    Args:
        size: The size of a sample. A suffix: the length of that field, or its value if it is a number.
            Or a function of a sample: in global order of the stored fields, a value for one suffix and a tuple for
            several; in shards order of the sample at this stage.
        max_total: Limit of a pack: the sum of its sizes.
        max_samples: Limit of a pack in samples; 0 for none.
        multiple_of: Each sequence is padded with zeros to a multiple of this, and its size includes the padding.
        collate: ``"thd"`` makes a dictionary, see :class:`Thd`; ``"list"``, ``"default"``, ``"pad"`` and functions of
            a list of samples as in ``batch``.
        fields: Names, or numbers in a tuple, of the fields that ``"thd"`` concatenates. By default the first field
            with a dimension, and those that are as long as it in every sample of the pack.
        pad_to: ``"max_total"`` pads concatenated fields with zeros to ``max_total``, so that all packs have one shape.
        window: In shards order, samples that are packed at a time.
    """

    size: str | Callable[[Any], int]
    max_total: int
    max_samples: int = 0
    multiple_of: int = 1
    collate: Collate = "thd"
    fields: Sequence[str | int] | None = None
    pad_to: Literal["max_total"] | None = None
    window: int = 1024
    makes_batches = True

    def __post_init__(self) -> None:
        check_size(self.size)
        whole_number("max_total", self.max_total, least=1)
        whole_number("max_samples", self.max_samples, least=0)
        whole_number("multiple_of", self.multiple_of, least=1)
        whole_number("window", self.window, least=1)
        one_of("pad_to", self.pad_to, ("max_total", None))
        if self.collate != "thd":
            if self.multiple_of > 1 or self.pad_to or self.fields:
                raise ConfigError(f"multiple_of, pad_to and fields need collate='thd', not {self.collate!r}")
            collation(self.collate)

    def plan(self, sizes: Ids, request: PlanRequest) -> ListedPlan:
        """Return the plan of all epochs.

        Raises:
            PlanError: If a sample is too large.
        """
        return pack_plan(self._filled(sizes), request, max_total=self.max_total, max_samples=self.max_samples)

    def columns(self, fields: Fields) -> Any:
        """Return the pack of a planned share."""
        return self._collate(samples_of(fields)) if self.collate == "thd" else collated(fields, self.collate)

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the packs; in global order the planned share is one."""
        if context.current().order == "global":
            return (self._collate(share) for share in [list(samples)] if share)
        packs = pack_stream(
            samples, self._size, max_total=self.max_total, max_samples=self.max_samples, window=self.window
        )
        return (self._collate(pack) for pack in packs)

    def _size(self, sample: Any) -> int:
        if callable(self.size):
            return int(self._filled(self.size(sample)))
        if not isinstance(sample, Mapping):
            raise ConfigError(
                f"pack cannot find {self.size!r} in a {type(sample).__name__}; give it a function as size, samples "
                "that are dictionaries, or order='global'"
            )
        return int(self._filled(size_of(sample[self.size], repr(self.size))))

    def _filled(self, size: Any) -> Any:
        return -(-size // self.multiple_of) * self.multiple_of

    def _collate(self, samples: list[Any]) -> Any:
        if self.collate != "thd":
            return collation(self.collate)(samples)
        total = self.max_total if self.pad_to else 0
        return Thd(fields=self.fields, multiple_of=self.multiple_of, total=total)(samples)


@dataclass(frozen=True, kw_only=True)
class Thd:
    """Makes the dictionary of a pack: tokens of all samples in a row, and where each sample begins.

    Its keys are those of the samples, or ``"0"``, ``"1"`` … for tuples, or ``"values"`` for single values; and

    * ``"cu_seqlens"``: int32 of shape ``(k + 1,)``, where each of the k samples begins in the concatenated fields,
      and the end of the last, without what ``total`` adds behind it;
    * ``"max_seqlen"``: the longest, an int;
    * ``"lengths"``: where ``multiple_of`` is above 1, int32 of shape ``(k,)``, the lengths before filling.

    Attributes:
        fields: The fields that are concatenated along dimension 0; others are collated as torch does.
        multiple_of: Each sequence is filled with zeros to a multiple of this.
        total: Length that concatenated fields are filled to; 0 for none.
    """

    fields: Sequence[str | int] | None = None
    multiple_of: int = 1
    total: int = 0

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        """Return the dictionary."""
        import torch

        columns = _columns(samples)
        chosen = self._chosen(columns)
        first = columns[chosen[0]]
        lengths = np.array([len(value) for value in first], dtype=np.int64)
        filled = -(-lengths // self.multiple_of) * self.multiple_of
        found: dict[str, Any] = {}
        for name, values in columns.items():
            found[name] = self._joined(name, values, lengths, filled) if name in chosen else _stacked(name, values)
        found["cu_seqlens"] = torch.from_numpy(np.append(0, np.cumsum(filled)).astype(np.int32))
        found["max_seqlen"] = int(filled.max())
        if self.multiple_of > 1:
            found["lengths"] = torch.from_numpy(lengths.astype(np.int32))
        return found

    def _chosen(self, columns: Mapping[str, list[Any]]) -> list[str]:
        if self.fields is not None:
            chosen = [str(name) for name in self.fields]
            if not chosen or set(chosen) - set(columns):
                raise ConfigError(f"pack: fields are {', '.join(chosen) or 'none'}, samples have {', '.join(columns)}")
            return chosen
        lengths = {
            name: [len(value) for value in values]
            for name, values in columns.items()
            if all(getattr(value, "ndim", 0) for value in values)
        }
        if not lengths:
            raise ConfigError(
                f"pack: no field of {', '.join(columns)} is a tensor or array with a dimension; "
                "collate='list' passes samples on as they are"
            )
        return [name for name, given in lengths.items() if given == next(iter(lengths.values()))]

    def _joined(self, name: str, values: list[Any], lengths: Ids, filled: Ids) -> torch.Tensor:
        import torch

        tensors = [torch.as_tensor(value) for value in values]
        if [len(tensor) for tensor in tensors] != lengths.tolist():
            raise ConfigError(f"pack: the field {name!r} is not as long as the first field in every sample of a pack")
        end = int(filled.sum())
        joined = context.worker().empty((max(end, self.total), *tensors[0].shape[1:]), tensors[0].dtype)
        if self.multiple_of == 1:
            torch.cat(tensors, out=joined[:end])
        else:
            joined.zero_()
            for tensor, start in zip(tensors, (np.cumsum(filled) - filled).tolist(), strict=True):
                joined[start : start + len(tensor)] = tensor
        joined[end:] = 0
        return joined


def _stacked(name: str, values: list[Any]) -> Any:
    try:
        return collate_values(values)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"pack: the field {name!r} cannot be stacked ({error}); name it in fields if it is as long as the first "
            "one, leave it out of suffix_keys_wds, or take collate='list'"
        ) from error


def _columns(samples: Sequence[Any]) -> dict[str, list[Any]]:
    if isinstance(samples[0], Mapping):
        return {str(name): [sample[name] for sample in samples] for name in samples[0]}
    if isinstance(samples[0], tuple | list):
        return {str(number): list(values) for number, values in enumerate(zip(*samples, strict=True))}
    return {"values": list(samples)}


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the planner."""
    yield Stage(name="pack", summary="join whole samples up to a total size, without padding", factory=Pack)
