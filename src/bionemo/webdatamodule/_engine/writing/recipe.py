"""What the bytes of a shard depend on beside its samples, and the hash of all that a shard is made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bionemo.webdatamodule._engine.writing.conversion import Conversion
from bionemo.webdatamodule._engine.writing.source_identity import identity
from bionemo.webdatamodule.components import KeyFunction, SampleReader
from bionemo.webdatamodule.errors import PluginError, WebDataModuleError
from bionemo.webdatamodule.pickles import Policy

PICKLES = frozenset({"pickle", "pkl", "pt", "pyd"})
"""Last parts of suffixes whose fields are pickles, unless the reader says otherwise."""

_VERSION = 2  # goes up when the same samples would give other bytes than before
_TOGETHER = 1024  # samples whose names, keys and fingerprints are hashed at a time


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How samples become the bytes of a shard. It pickles where the reader and the key encoder do.

    Attributes:
        reader: The writer's reader.
        encode: The key encoder.
        policy: What pickles may hold.
        writer: Name of the writer.
        codecs: Codec by suffix, as far as the reader declares them.
        text: All that determines a shard's bytes beside its samples.
    """

    reader: SampleReader
    encode: KeyFunction
    policy: Policy
    writer: str
    codecs: Mapping[str, str]
    text: str

    def codec(self, suffix: str) -> str:
        """Return the codec of a suffix: what the reader declares, else by the suffix's last part."""
        return self.codecs.get(suffix) or ("pickle" if suffix.rpartition(".")[2].lower() in PICKLES else "bytes")

    def fingerprints(self, names: Sequence[str]) -> Sequence[str] | None:
        """Return the reader's fingerprints of these samples, or ``None`` where it has none.

        Raises:
            PluginError: If the reader gives something else, or fails.
        """
        function = getattr(self.reader, "fingerprints", None)
        if function is None:
            return None
        try:
            found = function(names)
        except WebDataModuleError:
            raise
        except Exception as error:
            raise PluginError(
                f"fingerprints() of the writer {self.writer} fails with {type(error).__name__}: {error}",
                plugin=self.writer,
            ) from error
        if (
            not isinstance(found, Sequence)
            or isinstance(found, str)
            or len(found) != len(names)
            or not all(isinstance(one, str) for one in found)
        ):
            raise PluginError(
                f"fingerprints() of the writer {self.writer} must give one string a sample, not {found!r:.80}",
                plugin=self.writer,
            )
        return found

    def digest(self, names: Sequence[str], prints: Sequence[str] | None) -> str:
        """Return the hash of all that a shard is made from; it also names the shard's files while they are staged.

        Args:
            names: The shard's samples, in order.
            prints: Their fingerprints, if the reader gives any.
        """
        digest = hashlib.sha256(self.text.encode("utf-8", "surrogatepass"))
        for start in range(0, len(names), _TOGETHER):  # a whole shard's text at once would take much memory
            some = names[start : start + _TOGETHER]
            states = None if prints is None else list(prints[start : start + _TOGETHER])
            text = repr((list(some), [self.encode(name) for name in some], states))
            digest.update(text.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def recipe_of(conversion: Conversion) -> Recipe:
    """Return how the samples of a conversion become bytes.

    Raises:
        PluginError: If the reader declares a codec that does not exist.
    """
    writer = conversion.writer
    codecs = _codecs(writer.object, writer=writer.name)
    about = [_VERSION, writer.name, identity(writer.object, writer.options), as_json(codecs)]
    return Recipe(
        reader=writer.object,
        encode=conversion.key_encoder.object,
        policy=conversion.policy,
        writer=writer.name,
        codecs=codecs,
        text=json.dumps(about),
    )


def _codecs(reader: SampleReader, *, writer: str) -> Mapping[str, str]:
    found = getattr(reader, "codecs", {})
    if not isinstance(found, Mapping):
        raise PluginError(
            f"codecs of the writer {writer} must map suffixes to codecs, not {found!r:.80}", plugin=writer
        )
    for suffix, codec in found.items():
        if codec not in ("pickle", "bytes"):
            raise PluginError(
                f"the writer {writer} declares the codec {codec!r} for the suffix {suffix!r}; "
                "there are 'pickle' and 'bytes'",
                plugin=writer,
            )
    return dict(found)


def as_json(value: Any) -> Any:
    """Return options as JSON knows them: paths as text, other objects by their class."""
    return json.loads(json.dumps(value, sort_keys=True, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    kind = value if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
