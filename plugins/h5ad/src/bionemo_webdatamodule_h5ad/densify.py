"""The stage ``densify``: sparse vectors become dense ones; numpy is imported when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bionemo.webdatamodule.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Densify:
    """Turn the first two values of each sample, positions and values, into one dense vector of the values' type.

    A sample ``(indices, data, *rest)`` becomes ``(x, *rest)``, or ``x`` alone where there is no rest.
    Shards of sparse cells stay small, and their batches are dense.

    Args:
        size: Length of the vectors, the number of genes.

    Raises:
        ConfigError: If ``size`` is not a positive number.
    """

    size: int

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise ConfigError(f"size is a whole number of at least 1, not {self.size!r}")

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the samples with dense vectors.

        Raises:
            ConfigError: If a sample is no such tuple, or a position does not fit.
        """
        import numpy as np

        for sample in samples:
            if not isinstance(sample, tuple) or len(sample) < 2:
                raise ConfigError(f"densify takes tuples (indices, data, ...), not {sample!r:.80}")
            indices, data, *rest = sample
            values = np.asarray(data)
            x = np.zeros(self.size, values.dtype)
            try:
                x[np.asarray(indices)] = values
            except (IndexError, ValueError) as error:
                raise ConfigError(f"densify(size={self.size}) does not fit its samples: {error}") from error
            yield (x, *rest) if rest else x
