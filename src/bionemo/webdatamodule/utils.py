"""Functions of bionemo-webdatamodule 1.0.0."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bionemo.webdatamodule.components import Use
from bionemo.webdatamodule.errors import ConfigError, InputError
from bionemo.webdatamodule.splits import Split


def pickles_to_tars(
    dir_input: str | os.PathLike[str],
    input_prefix_subset: Sequence[str],
    input_suffix: str | Iterable[str],
    dir_output: str | os.PathLike[str],
    output_prefix: str,
    func_output_data: Callable[[str, dict[str, bytes]], Mapping[str, Any]] | None = None,
    min_num_shards: int | None = None,
    **kwargs: Any,
) -> None:
    """Convert pickle files ``{dir_input}/{name}.{suffix}`` to tar shards, with the guarantees of a data module.

    Args:
        dir_input: The directory of the pickle files.
        input_prefix_subset: The names of the samples, in the order of the shards.
        input_suffix: The suffix of the files, or several.
        dir_output: The directory of the shards.
        output_prefix: The start of the shards' file names.
        func_output_data: Takes the key of a sample and the bytes of its files by suffix, and returns the fields to
            store and ``"__key__"``. By default the files are stored under their suffixes.
        min_num_shards: The number of shards; by default each has about 256 MiB.
        **kwargs: Further arguments of :class:`~bionemo.webdatamodule.datamodule.SourceDataWDS`, such as
            ``allow_pickle`` and ``executor``.

    Raises:
        ConfigError: If an argument is wrong.
        InputError: If samples cannot be read; nothing is written.
    """
    from bionemo.webdatamodule.datamodule import SourceDataWDS

    if not isinstance(input_suffix, (str, Iterable)):
        raise ConfigError(f"input_suffix is a suffix or several, not {input_suffix!r}")
    suffixes = (input_suffix,) if isinstance(input_suffix, str) else tuple(input_suffix)
    options: dict[str, Any] = {"directory": os.fspath(dir_input), "suffixes": suffixes}
    if func_output_data is not None:
        options["function"] = _WithKey(func_output_data)
        kwargs.setdefault("executor", "serial")  # any function may be given, also one that cannot be pickled
    SourceDataWDS(
        Use("pickles", **options),
        {Split.train: input_prefix_subset},
        {Split.train: dir_output},
        suffixes,
        1,
        prefix_tars_wds=output_prefix,
        n_tars_wds=min_num_shards,
        **kwargs,
    ).prepare_data()


class _WithKey:
    """A function of a sample's name, made of one of its key that also returns the key."""

    def __init__(self, function: Callable[[str, dict[str, bytes]], Mapping[str, Any]]) -> None:
        self.function = function

    def __call__(self, name: str, fields: dict[str, bytes]) -> dict[str, Any]:
        key = name.replace(".", "-")
        found = dict(self.function(key, fields))
        given = found.pop("__key__", key)
        if given != key:
            raise InputError(
                f"func_output_data gives the key {given!r} to the sample {name!r}; keys are made of names, "
                f"so return {key!r}, or write a key encoder",
                sample=name,
            )
        return found
