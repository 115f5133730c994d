"""The manifest of a split's shards, which a finished conversion writes and readers follow."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bionemo.webdatamodule._engine.format.shard_files import is_shard_name
from bionemo.webdatamodule.errors import ManifestError

FORMAT = 1
"""Version of the manifest's meaning. A reader refuses higher ones and ignores fields it does not know."""


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard as conversion wrote it.

    Attributes:
        name: File name inside the split's directory.
        bytes: Size of the tar in bytes.
        samples: Number of samples in it.
        sha256: Hash of the tar, as hexadecimal digits.
        index_sha256: Hash of the sidecar index.
        inputs: Hash of everything the shard was made from; empty for shards that were adopted.
    """

    name: str
    bytes: int
    samples: int
    sha256: str
    index_sha256: str
    inputs: str = ""


class NewerManifestError(ManifestError):
    """A newer version of the package wrote the manifest, so its files must not be changed."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished conversion wrote into one split's directory.

    Attributes:
        prefix: Beginning of the shards' names.
        suffixes: Every suffix that occurs, sorted.
        codecs: How the bytes of each suffix are encoded: ``"pickle"`` for objects in the canonical pickle
            form, ``"bytes"`` for what the writer plugin delivered.
        shards: The shards in the order in which their samples are numbered.
        writer: ``name``, ``options``, and where known ``plugin``, ``distribution`` and ``version``.
        key_encoder: ``name`` of the key encoder.
        versions: Versions of this package and of Python at the time of writing.
        format: See :data:`FORMAT`.
    """

    prefix: str
    suffixes: tuple[str, ...]
    codecs: Mapping[str, str]
    shards: tuple[ShardEntry, ...]
    writer: Mapping[str, Any] = field(default_factory=dict)
    key_encoder: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def n_samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def digest(self) -> str:
        """Hash of what identifies the data: the codecs, and the content and order of the shards."""
        identity = [self.format, sorted(self.codecs.items()), [[s.samples, s.sha256] for s in self.shards]]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of the manifest file: readable, sorted, and with a checksum of itself."""
        body = {
            "format": self.format,
            "prefix": self.prefix,
            "n_samples": self.n_samples,
            "suffixes": list(self.suffixes),
            "codecs": dict(self.codecs),
            "writer": dict(self.writer),
            "key_encoder": dict(self.key_encoder),
            "versions": dict(self.versions),
            "shards": [vars(shard) for shard in self.shards],
        }
        return json.dumps({**body, "checksum": _checksum(body)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "the manifest", prefix: str | None = None) -> Manifest:
        """Return the manifest that :meth:`to_json` wrote.

        Whatever a manifest makes others do with files, it does to shards of its prefix in its own directory.

        Args:
            text: Content of the file.
            source: Where it comes from, for messages.
            prefix: The prefix that it must be of.

        Raises:
            ManifestError: If it is no manifest, was changed by hand, lists what is not a shard of its prefix,
                or is of a newer format.
        """
        try:
            body = json.loads(text)
            checksum = body.pop("checksum")
            format_ = body["format"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ManifestError(f"{source} is cut short or no manifest; {_CONVERT_AGAIN}", file=source) from error
        if not _is_count(format_) or format_ > FORMAT:
            kind = NewerManifestError if _is_count(format_) else ManifestError
            raise kind(
                f"{source} has format {format_!r}, this version of the package reads up to {FORMAT}; "
                "update bionemo-webdatamodule",
                file=source,
            )
        if checksum != _checksum(body):
            raise ManifestError(f"{source} was changed after it was written; {_CONVERT_AGAIN}", file=source)
        problem = _problem(body, prefix)
        if problem is not None:
            raise ManifestError(f"{source} {problem}; {_CONVERT_AGAIN}", file=source)
        return cls(
            format=format_,
            prefix=body["prefix"],
            suffixes=tuple(body["suffixes"]),
            codecs=body["codecs"],
            shards=tuple(
                ShardEntry(**{name: shard[name] for name in ShardEntry.__dataclass_fields__ if name in shard})
                for shard in body["shards"]
            ),
            writer=body.get("writer", {}),
            key_encoder=body.get("key_encoder", {}),
            versions=body.get("versions", {}),
        )


_CONVERT_AGAIN = "run the conversion again, or restore the file"
_LARGEST = 1 << 62  # bytes of a file
_END, _LEAST = 1024, 512  # bytes of the end of an archive, and of a sample: one header at least
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _problem(body: Mapping[str, Any], prefix: str | None) -> str | None:
    """Return what is wrong with a manifest of this format, as the rest of a sentence, or ``None``."""
    own = body.get("prefix")
    if not isinstance(own, str) or not own or os.path.basename(own) != own or (prefix is not None and own != prefix):
        return f"is of the prefix {own!r}" + ("" if prefix is None else f" instead of {prefix!r}")
    suffixes, codecs, shards = (body.get(name) for name in ("suffixes", "codecs", "shards"))
    if not isinstance(suffixes, list) or not all(isinstance(suffix, str) for suffix in suffixes):
        return "has no list of suffixes"
    if not isinstance(codecs, dict) or not all(isinstance(name, str) for name in codecs.values()):
        return "does not say how fields are encoded"
    for name in ("writer", "key_encoder", "versions"):
        if not isinstance(body.get(name, {}), dict):
            return f"has a {name} that is {body[name]!r:.60}"
    if not isinstance(shards, list) or not shards:
        return "lists no shards"
    problem = next(filter(None, (_shard_problem(shard, own) for shard in shards)), None)
    if problem is None and len({shard["name"] for shard in shards}) < len(shards):
        return "lists a shard twice"
    return problem


def _shard_problem(shard: Any, prefix: str) -> str | None:
    """Return what is wrong with a manifest's entry of a shard, as the rest of a sentence, or ``None``."""
    name = shard.get("name") if isinstance(shard, dict) else None
    if not isinstance(name, str) or not is_shard_name(name, prefix):
        return f"lists {name!r:.200}, which is not a shard of the prefix {prefix!r}"
    if os.path.basename(name) != name or "\0" in name:
        return f"lists {name!r:.200}, which is not in its directory"
    size, samples = shard.get("bytes"), shard.get("samples")
    if not _is_count(size) or not _is_count(samples):
        return f"gives no size of {name}"
    if size > _LARGEST or not 0 < samples <= (size - _END) // _LEAST:
        return f"gives {name} {samples!s:.30} samples in {size!s:.30} bytes, which cannot be"
    if not all(_is_sha256(shard.get(sha256)) for sha256 in ("sha256", "index_sha256")):
        return f"gives no hash of {name}"
    inputs = shard.get("inputs", "")
    return (
        None if inputs == "" or _is_sha256(inputs) else f"gives {name} the inputs {inputs!r:.200}, which are not a hash"
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def manifest_path(directory: str, prefix: str) -> str:
    """Return the path of the manifest of a prefix."""
    return os.path.join(directory, f"{prefix}.manifest.json")


def journal_path(directory: str, prefix: str) -> str:
    """Return the path of the next manifest, which lies there only while its shards are moved into place.

    While it exists the directory may hold old and new shards, so readers refuse it;
    the next conversion finishes the move.
    """
    return os.path.join(directory, f"{prefix}.manifest.next.json")


def staging_path(directory: str, prefix: str) -> str:
    """Return the directory in which a conversion collects finished shards before it publishes them."""
    return os.path.join(directory, f".{prefix}.staging")


def lease_path(directory: str, prefix: str) -> str:
    """Return the link by which a conversion shows others that it is running."""
    return os.path.join(directory, f".{prefix}.lease")


def shard_name(prefix: str, number: int, n_shards: int) -> str:
    """Return the file name of a shard.

    Numbers have six digits, and more only where a set has over a million shards,
    so that names sort in the order of the shards.
    """
    return f"{prefix}-{number:0{max(6, len(str(n_shards - 1)))}d}.tar"


def read_manifest(directory: str, prefix: str) -> Manifest | None:
    """Return the manifest of a prefix in a local directory, or ``None`` where there is none.

    Raises:
        ManifestError: If it cannot be read, was changed by hand, is of a newer format, or a conversion
            is being published or was killed while it was.
    """
    manifest = load_manifest(manifest_path(directory, prefix), prefix)
    if os.path.lexists(journal_path(directory, prefix)):  # looked for last, so that no swap starts unseen
        raise ManifestError(
            f"a conversion into {directory} is being published, or was stopped while it was; "
            "wait for it or run it again",
            file=journal_path(directory, prefix),
        )
    return manifest


def load_manifest(path: str, prefix: str | None = None) -> Manifest | None:
    """Return the manifest in a local file, of any or one prefix, or ``None`` where there is none.

    Raises:
        ManifestError: See :func:`read_manifest`.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}", file=path) from error
    return Manifest.from_json(text, source=path, prefix=prefix)


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
