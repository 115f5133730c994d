"""The codec of a suffix: the user's choice, that of the manifest, or the one registered for the suffix."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bionemo.webdatamodule.components import Codec, FieldCodec, Ref
from bionemo.webdatamodule.errors import ConfigError, ManifestError, PluginError, UnknownNameError
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.plugins import Plugins, Registered, as_use, build, find, installed_plugins

PLAIN = "bytes"
"""The codec of suffixes without a codec. In a manifest it means that the suffix decides."""


class NamedCodec(NamedTuple):
    """A codec that is ready for use, and its name for messages, such as ``npy`` or ``gz(json)``."""

    name: str
    codec: FieldCodec


@dataclass(frozen=True, kw_only=True)
class Codecs:
    """Finds the codecs of suffixes. It pickles if the registered records do.

    Attributes:
        policy: What pickles may do, for the codecs that ask.
        chosen: Codecs that the user chose, by suffix.
        registered: The codecs of a set of plugins; ``None`` for the installed plugins.
    """

    policy: Policy = field(default_factory=Policy)
    chosen: Mapping[str, Ref] = field(default_factory=dict)
    registered: tuple[Registered, ...] | None = None

    def of(self, suffix: str, recorded: str | None = None) -> NamedCodec:
        """Return the codec of a suffix.

        Args:
            suffix: For example ``tensor.pyd``.
            recorded: The codec that the manifest names; ``"bytes"`` and ``None`` leave it to the suffix.

        Raises:
            ManifestError: If the manifest names a codec that is not installed.
            PluginError: If several plugins claim the suffix, or a factory fails.
            ConfigError: If the user's choice is none.
        """
        if suffix in self.chosen:
            return self._chosen(suffix, self.chosen[suffix])
        if recorded in (None, PLAIN):
            return self._made(self._for_suffix(suffix), suffix, {})
        try:
            component = self._find(recorded)
        except UnknownNameError as error:
            raise ManifestError(
                f"the manifest says that the fields are {recorded!r}, and no installed codec has this name; "
                "install the plugin that has it, or update bionemo-webdatamodule",
                suffix=suffix,
            ) from error
        return self._made(component, suffix, {})

    def _chosen(self, suffix: str, ref: Ref) -> NamedCodec:
        use = as_use(ref)
        if use is not None:
            return self._made(self._find(use.name), suffix, use.options)
        if not callable(getattr(ref, "decode", None)):
            raise ConfigError(
                f"codecs[{suffix!r}] is the name of a codec, a Use, or an object with decode(view), not {ref!r:.80}"
            )
        return NamedCodec(type(ref).__name__, ref)  # type: ignore[arg-type]  # it has decode, as just checked

    def _find(self, name: str) -> Codec:
        if self.registered is None:
            return find(Codec, name)
        matches = [found for found in self.registered if found.component.name == name]
        matches = [found for found in matches if found.component.override] or matches
        if not matches:
            names = sorted({found.component.name for found in self.registered})
            raise UnknownNameError(f"no codec is named {name!r}. Registered: {', '.join(names)}.")
        return matches[0].component  # type: ignore[return-value]  # they are all codecs

    def _for_suffix(self, suffix: str) -> Codec:
        """Return what is registered for the longest ending of a suffix."""
        registered = codecs_in(installed_plugins()) if self.registered is None else self.registered
        for ending in _endings(suffix.lower()):
            claims = [found for found in registered if ending in map(str.lower, _codec(found).suffixes)]
            claims = [found for found in claims if found.component.override] or claims
            if len(claims) > 1:
                names = " and ".join(
                    f"{found.component.name!r} of the plugin {found.plugin!r} ({found.distribution} {found.version})"
                    for found in claims
                )
                raise PluginError(
                    f"several codecs decode the suffix {ending!r}: {names}; "
                    f"choose one with codecs={{{suffix!r}: ...}}, or disable a plugin",
                    suffix=suffix,
                )
            if claims:
                return _codec(claims[0])
        return self._find(PLAIN)

    def _made(self, component: Codec, suffix: str, options: Mapping[str, Any]) -> NamedCodec:
        given, name = dict(options), component.name
        if "policy" in inspect.signature(component.factory).parameters:
            given.setdefault("policy", self.policy)
        if component.wraps and "inner" not in given:
            inner = self._made(self._for_suffix(_within(suffix)), _within(suffix), {})
            given["inner"], name = inner.codec, f"{name}({inner.name})"
        codec = build(component, given)
        if not callable(getattr(codec, "decode", None)):
            raise PluginError(f"the codec {component.name!r} has no decode(view)", suffix=suffix)
        return NamedCodec(name, codec)


def codecs_in(plugins: Plugins) -> tuple[Registered, ...]:
    """Return the codecs of a set of plugins."""
    return tuple(found for found in plugins.registered if isinstance(found.component, Codec))


def find_codecs(policy: Policy, chosen: Mapping[str, Ref] | None = None, plugins: Plugins | None = None) -> Codecs:
    """Return the codecs for a data module's arguments.

    Raises:
        ConfigError: If a chosen codec is none, or refuses its options.
        UnknownNameError: If its name is not registered.
    """
    codecs = Codecs(
        policy=policy, chosen=dict(chosen or {}), registered=None if plugins is None else codecs_in(plugins)
    )
    for suffix in codecs.chosen:
        codecs.of(suffix)
    return codecs


def _codec(found: Registered) -> Codec:
    return found.component  # type: ignore[return-value]  # codecs_in picked them


def _within(suffix: str) -> str:
    return suffix.rpartition(".")[0]


def _endings(suffix: str) -> Iterator[str]:
    """Yield a suffix, and what is left of it after each dot."""
    while suffix:
        yield suffix
        suffix = suffix.partition(".")[2]
