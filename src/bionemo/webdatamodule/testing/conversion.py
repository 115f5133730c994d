"""A conversion in a test, and its shards as stock webdataset reads them."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bionemo.webdatamodule.components import KeyEncoder, Sample, SampleReader
from bionemo.webdatamodule.plugins import build, find


@dataclass(frozen=True, kw_only=True)
class Shards:
    """What :func:`convert_samples` wrote.

    Attributes:
        paths: The shards.
        keys: Key of each name.
        codecs: How the bytes of each suffix are encoded, as the manifest says.
    """

    paths: tuple[str, ...]
    keys: Mapping[str, str]
    codecs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class MadeUpReader:
    """A source without files: ``n`` samples of different sizes with two fields, always the same.

    Args:
        n: How many.
    """

    n: int

    def names(self) -> Sequence[str]:
        """Return the names."""
        return [f"sample-{number}" for number in range(self.n)]

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the samples of these names."""
        for name in names:
            number = int(name.removeprefix("sample-"))
            yield Sample(
                name, {"bin": bytes([number % 256]) * (100 * number), "txt": f"{zlib.crc32(name.encode())}".encode()}
            )


def convert_samples(
    reader: SampleReader, names: Sequence[str], directory: str, *, executor: Any = "serial", n_shards: int = 2
) -> Shards:
    """Convert a reader's samples to shards through the data module, with the key encoder ``escaped``.

    Args:
        reader: Where the samples come from.
        names: Which samples.
        directory: Where the shards go.
        executor: What runs the tasks; by default one after the other.
        n_shards: How many shards.
    """
    from bionemo.webdatamodule.datamodule import SourceDataWDS

    SourceDataWDS(
        reader,
        {"train": list(names)},
        f"{directory}/",
        "any",  # nothing is read by it
        1,
        n_tars_wds=n_shards,
        key_encoder="escaped",
        executor=executor,
        pickles="trusted",
    ).prepare_data()
    manifest = json.loads(Path(directory, "train", "wdshards.manifest.json").read_text(encoding="utf-8"))
    encode = build(find(KeyEncoder, "escaped"), {})
    return Shards(
        paths=tuple(f"{directory}/train/{shard['name']}" for shard in manifest["shards"]),
        keys={name: encode(name) for name in names},
        codecs=manifest["codecs"],
    )


def raw_samples(paths: Sequence[str]) -> dict[str, dict[str, bytes]]:
    """Return what webdataset itself reads from shards: bytes by suffix, by key."""
    from webdataset import tariterators

    with contextlib.ExitStack() as opened:  # webdataset's own opener leaves files to the garbage collector
        sources = [{"url": path, "stream": opened.enter_context(Path(path).open("rb"))} for path in paths]
        samples = list(tariterators.group_by_keys(tariterators.tar_file_expander(sources)))
    return {
        sample["__key__"]: {suffix: data for suffix, data in sample.items() if not suffix.startswith("__")}
        for sample in samples
    }
