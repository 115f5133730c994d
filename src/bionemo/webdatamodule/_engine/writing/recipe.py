"""What the bytes of a shard depend on beside its samples, and the hash of all that a shard is made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from bionemo.webdatamodule._engine.codecs import PLAIN, Codecs
from bionemo.webdatamodule._engine.writing.conversion import Conversion
from bionemo.webdatamodule._engine.writing.source_identity import identity
from bionemo.webdatamodule.components import KeyFunction, SampleReader
from bionemo.webdatamodule.errors import ManifestError, PluginError, WebDataModuleError

Inputs: TypeAlias = Callable[[Sequence[str]], tuple[str, list[str]]]
"""What :meth:`Recipe.inputs` is."""

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
        codecs: The codecs of fields.
        writer: Name of the writer.
        where: Its plugin for an error's ``where``.
        declared: Name of the codec by suffix, as far as the reader declares them.
        text: All that determines a shard's bytes beside its samples.
    """

    reader: SampleReader
    encode: KeyFunction
    codecs: Codecs
    writer: str
    where: Mapping[str, str] = field(default_factory=dict)
    declared: Mapping[str, str]
    text: str

    def codec(self, suffix: str) -> str:
        """Return the name of a suffix's codec: what the reader declares, else by the suffix.

        The codec of a plugin is named where it recodes; otherwise reading finds it by the suffix.
        """
        declared = self.declared.get(suffix)
        if declared:
            return declared
        own = self.codecs.of_plugin(suffix)
        if own is not None:
            return own.name if hasattr(own.codec, "recode") else PLAIN
        return "pickle" if suffix.rpartition(".")[2].lower() in PICKLES else PLAIN

    def recode(self, suffix: str) -> Callable[[bytes], Any] | None:
        """Return what brings the fields of a suffix into their canonical form; ``None`` if they are stored as given."""
        name = self.codec(suffix)
        return None if name == PLAIN else getattr(self.codecs.of(suffix, name).codec, "recode", None)

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
                writer=self.writer,
                **self.where,
            ) from error
        if (
            not isinstance(found, Sequence)
            or isinstance(found, str)
            or len(found) != len(names)
            or not all(isinstance(one, str) for one in found)
        ):
            raise PluginError(
                f"fingerprints() of the writer {self.writer} must give one string a sample, not {found!r:.80}",
                writer=self.writer,
                **self.where,
            )
        return found

    def inputs(self, names: Sequence[str]) -> tuple[str, list[str]]:
        """Return the hash of all that a shard is made from, and which of its samples are missing.

        The hash also names the shard's files while they are staged.

        Args:
            names: The shard's samples, in order.

        Raises:
            PluginError: As :meth:`fingerprints`.
        """
        prints = self.fingerprints(names)
        missing = [name for name, one in zip(names, prints or (), strict=False) if not one]
        return self._digest(names, prints), missing

    def _digest(self, names: Sequence[str], prints: Sequence[str] | None) -> str:
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
    declared = _declared(writer.object, conversion.codecs, writer=writer.name, **writer.where)
    about = [_VERSION, writer.name, identity(writer.object, writer.options), as_json(declared)]
    return Recipe(
        reader=writer.object,
        encode=conversion.key_encoder.object,
        codecs=conversion.codecs,
        writer=writer.name,
        where=writer.where,
        declared=declared,
        text=json.dumps(about),
    )


def _declared(reader: SampleReader, codecs: Codecs, *, writer: str, **where: str) -> Mapping[str, str]:
    found = getattr(reader, "codecs", {})
    if not isinstance(found, Mapping):
        raise PluginError(
            f"codecs of the writer {writer} must map suffixes to codecs, not {found!r:.80}", writer=writer, **where
        )
    for suffix, codec in found.items():
        by_suffix = codecs.of(suffix).name
        if codec == PLAIN != by_suffix:
            raise PluginError(
                f"the writer {writer} declares the codec {PLAIN!r} for the suffix {suffix!r}, whose fields are decoded "
                f"as {by_suffix}; take a suffix that has no codec, such as {suffix.replace('.', '_')!r}",
                writer=writer,
                **where,
            )
        try:
            codecs.of(suffix, codec)
        except ManifestError as error:
            raise PluginError(
                f"the writer {writer} declares the codec {codec!r} for the suffix {suffix!r}, "
                "and no installed codec has this name; install the plugin that has it",
                writer=writer,
                **where,
            ) from error
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
