"""The fields of samples as columns, decoded lazily and together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from bionemo.webdatamodule._engine.reading.fields import Place, field_views, has_field, key_of
from bionemo.webdatamodule._engine.reading.selection import KEY, Selected
from bionemo.webdatamodule.columns import Column, ValueColumn, is_fields
from bionemo.webdatamodule.errors import PluginError, count

if TYPE_CHECKING:
    from bionemo.webdatamodule.components import FieldCodec

Views: TypeAlias = Callable[[Sequence[Place], int], Sequence[memoryview]]
"""Returns the bytes of one field, given by its number, of samples."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """Where a field of each sample comes from.

    Attributes:
        selected: The suffixes that it may have.
        side: Number of the sets that have it, see :meth:`.Places.sides`.
        columns: For each of them its number among those that shards were opened for.
        codecs: For each of them what decodes it.
        origins: For each of them the codec's name and plugin, for errors.
    """

    selected: Selected
    side: int
    columns: tuple[int, ...]
    codecs: tuple[FieldCodec, ...]
    origins: tuple[Mapping[str, str], ...] = ()

    def column(self, places: Sequence[Place], views: Views = field_views) -> Column:
        """Return the column of samples, not decoded yet.

        Args:
            places: Where the samples are.
            views: Returns the bytes of one field of each, :func:`.sound_views` to have them checked.

        Raises:
            MissingFieldError: If a sample lacks the field.
            CorruptShardError: If a sample's key, or what is checked, is damaged.
        """
        if self.selected.suffixes == (KEY,):
            return ValueColumn(list(map(key_of, places)))
        if len(self.columns) == 1 and not self.selected.optional:
            return column_of(self.codecs[0], views(places, self.columns[0]))
        return self._mixed(places, views)

    def stored(self, place: Place) -> tuple[str, Mapping[str, str]]:
        """Return the suffix that a sample has, and its codec for errors; what the user wrote where it has none."""
        named = zip(self.selected.suffixes, self.origins, self.columns, strict=False)  # the key has no column
        found = ((suffix, origin) for suffix, origin, column in named if has_field(place, column))
        return next(found, (self.selected.asked, {}))

    def _mixed(self, places: Sequence[Place], views: Views) -> Column:
        """Return the column of samples that have it under several suffixes, or lack it."""
        chosen = [next((n for n, c in enumerate(self.columns) if has_field(place, c)), None) for place in places]
        if places and chosen[0] is not None and chosen.count(chosen[0]) == len(chosen):
            return column_of(self.codecs[chosen[0]], views(places, self.columns[chosen[0]]))
        fields: list[Any] = [None] * len(places)
        for number in dict.fromkeys(chosen):
            if number is None and self.selected.optional:
                continue
            rows = [row for row, one in enumerate(chosen) if one == number]
            found = views([places[row] for row in rows], self.columns[number or 0])
            for row, view in zip(rows, found, strict=True):
                fields[row] = (number or 0, view)
        return ValueColumn(fields, self._decoded)

    def _decoded(self, field: tuple[int, memoryview] | None) -> Any:
        return None if field is None else self.codecs[field[0]].decode(field[1])


def column_of(codec: FieldCodec, views: Sequence[memoryview]) -> Column:
    """Return the column of some fields, by the codec's own form if it has one."""
    column = getattr(codec, "column", None)
    if column is None:
        return ValueColumn(views, codec.decode)
    made: Any = column(views)
    if isinstance(made, tuple | dict) or not is_fields(made) or len(made) != len(views):
        raise PluginError(
            f"column() of the codec {codec!r:.60} gives {made!r:.60} for {count(len(views), 'field')}; "
            "it returns an object of their number with values(), stack() and pad()"
        )
    return made  # type: ignore[no-any-return]  # it was looked at


@dataclass(kw_only=True, eq=False)
class Together:
    """A field of the samples of several shares.

    Attributes:
        field: Where it comes from.
        places: The samples.
        column: Their column.
        values: Their values, once they were asked for.
    """

    field: Field
    places: Sequence[Place]
    column: Any
    values: list[Any] | None = None

    def part(self, where: slice) -> Any:
        """Return the column of some of them."""
        if hasattr(self.column, "__getitem__"):
            return self.column[where]
        return self.field.column(self.places[where])


@dataclass(eq=False, slots=True)  # one is made for every share
class ShareColumn:
    """The part of a column that belongs to one share.

    Attributes:
        together: The column of several shares.
        where: The share's place in it.
        apart: Decode its values by themselves, so that memory holds those of one share only; otherwise all are
            decoded when the first share asks, which is faster.
    """

    together: Together
    where: slice
    apart: bool = False

    def __len__(self) -> int:
        return self.where.stop - self.where.start  # type: ignore[no-any-return]  # slices hold anything

    def __getitem__(self, where: slice) -> ShareColumn:
        """Return the column of consecutive samples of the share."""
        start, stop, _ = where.indices(len(self))
        return ShareColumn(self.together, slice(self.where.start + start, self.where.start + stop), self.apart)

    def values(self) -> list[Any]:
        """Return the value of each sample."""
        if self.apart:
            return self.together.part(self.where).values()  # type: ignore[no-any-return]  # by protocol
        if self.together.values is None:
            self.together.values = self.together.column.values()
        return self.together.values[self.where]

    def stack(self) -> Any:
        """Return the batch of the values."""
        return self.together.part(self.where).stack()

    def pad(self) -> Any:
        """Return the padded batch of the values."""
        return self.together.part(self.where).pad()
