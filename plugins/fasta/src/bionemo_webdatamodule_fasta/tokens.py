"""The stage ``tokenize``: letters of sequences become whole numbers; numpy and torch are imported when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bionemo.webdatamodule.errors import ConfigError, DecodeError

_SPECIAL = ("<cls>", "<pad>", "<eos>", "<unk>")

RESIDUES: Mapping[str, int] = {
    token: number for number, token in enumerate([*_SPECIAL, *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"])
}
"""Amino acids, numbered 0 to 32 as in the vocabulary that the ESM-2 language models were trained with."""

NUCLEOTIDES: Mapping[str, int] = {
    **{token: number for number, token in enumerate([*_SPECIAL, *"ACGTNRYSWKMBDHV", ".", "-", "<mask>"])},
    "U": 7,
}
"""Nucleotides and the IUPAC letters for several of them, numbered 0 to 21; U of RNA is read as T."""

_NAMED = {"residues": RESIDUES, "nucleotides": NUCLEOTIDES}


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """Turn sequences, text or bytes, into one-dimensional int64 tensors, a number for each letter.

    Args:
        field: Where the sequence is in a sample: its position in a tuple, its key in a dictionary;
            ``None`` where the sample is the sequence itself. Other values of the sample stay as they are.
        vocabulary: ``"residues"``, ``"nucleotides"``, or your own mapping from letters to numbers.
            Special tokens are written ``<cls>``, ``<pad>``, ``<eos>``, ``<unk>``.
        unknown: What to do with letters that are not in the vocabulary: ``"token"`` reads them as ``<unk>``,
            ``"raise"`` is an error.
        fold: Read lower-case letters, which often mark repeats, as upper-case ones where the vocabulary
            has only those.
        special: Put ``<cls>`` in front and ``<eos>`` behind.
        length: Make each tensor this long, so that they can be batched: cut letters off the end or add ``<pad>``.
            Special tokens count, and are never cut off.
        output: ``"torch"`` for tensors or ``"numpy"`` for arrays.

    Raises:
        ConfigError: If an option is wrong, or the vocabulary lacks a special token that the options need.
    """

    field: int | str | None = None
    vocabulary: Literal["residues", "nucleotides"] | Mapping[str, int] = "residues"
    unknown: Literal["token", "raise"] = "token"
    fold: bool = True
    special: bool = False
    length: int | None = None
    output: Literal["torch", "numpy"] = "torch"

    def __post_init__(self) -> None:
        if self.unknown not in ("token", "raise") or self.output not in ("torch", "numpy"):
            raise ConfigError(
                "unknown is 'token' or 'raise' and output is 'torch' or 'numpy', "
                f"not {self.unknown!r} and {self.output!r}"
            )
        vocabulary = self._vocabulary()
        letters = [token for token in vocabulary if not (token.startswith("<") and token.endswith(">"))]
        if wrong := [token for token in letters if len(token) != 1 or not token.isascii()]:
            raise ConfigError(f"a vocabulary holds single ASCII letters and special tokens like '<pad>', not {wrong}")
        if wrong := [token for token, number in vocabulary.items() if type(number) is not int or abs(number) >= 2**62]:
            raise ConfigError(f"a vocabulary gives each token a whole number of 64 bits, not {vocabulary[wrong[0]]!r}")
        needed = {"<unk>": self.unknown == "token", "<pad>": self.length is not None}
        needed |= {"<cls>": self.special, "<eos>": self.special}
        if missing := [token for token, asked in needed.items() if asked and token not in vocabulary]:
            raise ConfigError(f"these options need {', '.join(missing)} in the vocabulary")
        if self.length is not None and self.length < 1 + 2 * self.special:
            raise ConfigError(f"length must leave room for a letter, not be {self.length!r}")

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the samples, each with its sequence as numbers.

        Raises:
            DecodeError: If a letter is unknown and ``unknown="raise"``.
            ConfigError: If a sample has no sequence at ``field``.
        """
        encode, field = self._encoder(), self.field
        for sample in samples:
            if field is None:
                yield encode(sample)
            elif isinstance(sample, dict) and field in sample:
                yield {**sample, field: encode(sample[field])}
            elif isinstance(sample, tuple | list) and isinstance(field, int) and -len(sample) <= field < len(sample):
                values = list(sample)
                values[field] = encode(values[field])
                yield tuple(values) if isinstance(sample, tuple) else values
            else:
                raise ConfigError(f"tokenize finds no field {field!r} in a {type(sample).__name__}: {sample!r:.80}")

    def _vocabulary(self) -> Mapping[str, int]:
        if isinstance(self.vocabulary, Mapping):
            return self.vocabulary
        if self.vocabulary not in _NAMED:
            raise ConfigError(f"vocabulary is {', '.join(_NAMED)} or a mapping, not {self.vocabulary!r}")
        return _NAMED[self.vocabulary]

    def _encoder(self) -> Callable[[Any], Any]:
        """Return the function from a sequence to its numbers."""
        import numpy as np

        vocabulary = self._vocabulary()
        none = min(vocabulary.values()) - 1  # marks unknown letters; no token has this number
        table = np.full(256, none if self.unknown == "raise" else vocabulary["<unk>"], np.int64)
        if self.fold:
            table[[ord(token.lower()) for token in vocabulary if len(token) == 1]] = [
                number for token, number in vocabulary.items() if len(token) == 1
            ]
        for token, number in vocabulary.items():
            if len(token) == 1:
                table[ord(token)] = number
        length, special, refuse = self.length, self.special, self.unknown == "raise"
        pad, cls, eos = (vocabulary.get(token, none) for token in ("<pad>", "<cls>", "<eos>"))

        def encode(sequence: Any) -> Any:
            letters = _letters(sequence)
            count = len(letters) if length is None else min(len(letters), length - 2 * special)
            numbers = np.full(count + 2 * special if length is None else length, pad, np.int64)
            found = numbers[special : special + count]
            np.take(table, letters[:count], out=found, mode="clip")  # clip skips a check: bytes are below 256
            if refuse and (found == none).any():
                place = int(np.argmax(found == none))
                raise DecodeError(
                    f"letter {chr(letters[place])!r} at position {place + 1} is not in the vocabulary; "
                    "add it or use unknown='token'"
                )
            if special:
                numbers[0], numbers[count + 1] = cls, eos
            return numbers

        def _letters(sequence: Any) -> Any:
            if isinstance(sequence, str):
                sequence = sequence.encode("ascii", "replace")
            if not isinstance(sequence, bytes | bytearray | memoryview):
                raise ConfigError(
                    f"tokenize takes text or bytes, not {type(sequence).__name__}; say with field= where they are"
                )
            return np.frombuffer(sequence, np.uint8)

        if self.output == "numpy":
            return encode
        import torch

        return lambda sequence: torch.from_numpy(encode(sequence))
