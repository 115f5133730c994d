"""The codec of a suffix: the user's choice, that of the manifest, or the one registered for the suffix."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bionemo.webdatamodule.components import Codec, FieldCodec, Ref
from bionemo.webdatamodule.errors import (
    ConfigError,
    DataWarning,
    ManifestError,
    PluginError,
    UnknownNameError,
    WebDataModuleError,
)
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.plugins import DISABLED, Plugins, Registered, as_use, installed_plugins, named

PLAIN = "bytes"
"""The codec of suffixes without a codec. In a manifest it means that the suffix decides."""


class NamedCodec(NamedTuple):
    """A codec that is ready for use.

    Attributes:
        name: Its name for messages, such as ``npy`` or ``gz(json)``.
        codec: The codec.
        where: Its plugin, for errors; empty for a default and for an object of the user's.
    """

    name: str
    codec: FieldCodec
    where: Mapping[str, str] = {}

    @property
    def origin(self) -> dict[str, str]:
        """Its name and plugin, for errors."""
        return {"codec": self.name, **self.where}


@dataclass(frozen=True, kw_only=True)
class Codecs:
    """Finds the codecs of suffixes. It pickles if the registered records do.

    Attributes:
        policy: What pickles may do, for the codecs that ask.
        chosen: Codecs that the user chose, by suffix; each counts for the suffixes that end in a dot and its own as
            well, in any letter case.
        registered: The codecs of a set of plugins; ``None`` for the installed plugins.
    """

    policy: Policy = field(default_factory=Policy)
    chosen: Mapping[str, Ref] = field(default_factory=dict)
    registered: tuple[Registered, ...] | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """What distinguishes codecs, as long as both exist: names and options, and which objects."""
        chosen = sorted((key, repr(ref) if as_use(ref) else id(ref)) for key, ref in self.chosen.items())
        return self.policy, repr(chosen), self.registered and tuple(map(id, self.registered))

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
        key = self.key_for(suffix)
        if key is not None:
            return self._chosen(key, suffix)
        if recorded in (None, PLAIN):
            return self._made(self.registered_for(suffix), suffix, {})
        try:
            found = self._find(recorded)
        except UnknownNameError as error:
            raise ManifestError(
                f"the manifest says that the fields are {recorded!r}, and no installed codec has this name; "
                "install the plugin that has it, or update bionemo-webdatamodule",
                suffix=suffix,
            ) from error
        return self._made(found, suffix, {})

    def of_plugin(self, suffix: str) -> NamedCodec | None:
        """Return the codec that a plugin registers for a suffix; ``None`` where that is a default one, or none.

        Raises:
            PluginError: As :meth:`of`.
        """
        found = self.registered_for(suffix)
        return None if found.default else self._made(found, suffix, {})

    def key_for(self, suffix: str) -> str | None:
        """Return which of the user's choices a stored suffix has: its own, or that of its longest ending."""
        if suffix in self.chosen:
            return suffix
        keys = {key.lower(): key for key in self.chosen}
        return next((keys[ending] for ending in _endings(suffix.lower()) if ending in keys), None)

    def _chosen(self, key: str, suffix: str) -> NamedCodec:
        ref = self.chosen[key]
        use = as_use(ref)
        if use is not None:
            return self._made(self._find(use.name), suffix, use.options)
        if not callable(getattr(ref, "decode", None)):
            raise ConfigError(
                f"codecs[{key!r}] is the name of a codec, a Use, or an object with decode(view), not {ref!r:.80}"
            )
        return NamedCodec(type(ref).__name__, ref)  # type: ignore[arg-type]  # it has decode, as just checked

    def _find(self, name: str) -> Registered:
        if self.registered is None:
            return installed_plugins().lookup(Codec, name)
        found = named(self.registered, Codec, name)
        if found is None:
            names = sorted({found.component.name for found in self.registered})
            raise UnknownNameError(f"no codec is named {name!r}. Registered: {', '.join(names)}.")
        return found

    def registered_for(self, suffix: str) -> Registered:
        """Return what is registered for the longest ending of a suffix.

        Raises:
            PluginError: If several plugins claim that ending.
        """
        registered = codecs_in(installed_plugins()) if self.registered is None else self.registered
        for ending in _endings(suffix.lower()):
            claims = [found for found in registered if ending in map(str.lower, _codec(found).suffixes)]
            claims = [found for found in claims if found.component.override] or claims
            if len(claims) > 1:
                names = " and ".join(f"{found.component.name!r} of the {found.origin}" for found in claims)
                raise PluginError(
                    f"several codecs decode the suffix {ending!r}: {names}; choose one, for example with "
                    f"codecs={{{suffix!r}: {claims[0].component.name!r}}}, or disable one, for example with "
                    f"{DISABLED}={claims[-1].plugin}",
                    suffix=suffix,
                )
            if claims:
                return self._find(claims[0].component.name)  # what overrides it need not name its suffixes
        return self._find(PLAIN)

    def _made(self, found: Registered, suffix: str, options: Mapping[str, Any]) -> NamedCodec:
        component = _codec(found)
        given, name, where = dict(options), component.name, found.where
        if "policy" in inspect.signature(component.factory).parameters:
            given.setdefault("policy", self.policy)
        if component.wraps and "inner" not in given:
            inner = self._made(self.registered_for(_within(suffix)), _within(suffix), {})
            given["inner"], name, where = inner.codec, f"{name}({inner.name})", where or inner.where
        try:
            return NamedCodec(name, found.build(given), where)
        except WebDataModuleError as error:
            raise error.located(suffix=suffix) from error.__cause__


def codecs_in(plugins: Plugins) -> tuple[Registered, ...]:
    """Return the codecs of a set of plugins."""
    return tuple(found for found in plugins.registered if isinstance(found.component, Codec))


def find_codecs(policy: Policy, chosen: Mapping[str, Ref] | None = None, plugins: Plugins | None = None) -> Codecs:
    """Return the codecs for a data module's arguments.

    Args:
        policy: What pickles may do.
        chosen: The user's choices, by suffixes that are written as in ``suffix_keys_wds``.
        plugins: Where names are looked up; by default among the installed plugins.

    Raises:
        ConfigError: If a chosen codec is none, or refuses its options.
        UnknownNameError: If its name is not registered.
    """
    given = {} if chosen is None else chosen
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f"codecs is a mapping from suffixes to codecs, such as {{'jpg': 'bytes'}}, not {given!r:.80}")
    by_name = {name: ref for key, ref in given.items() for name in names_in(key)}
    codecs = Codecs(policy=policy, chosen=by_name, registered=None if plugins is None else codecs_in(plugins))
    for suffix in codecs.chosen:
        codecs.of(suffix)
    return codecs


def lacking(error: ImportError, **where: object) -> PluginError:
    """Return the error of a codec that lacks a module, which no sample is to blame for."""
    remedy = f"install what provides the module {error.name}" if error.name else "install what the codec needs"
    return PluginError(f"the field cannot be decoded: {type(error).__name__}: {error}; {remedy}", **where)


def names_in(asked: str) -> list[str]:
    """Return the suffixes that a user's ``a;b?`` names: ``a`` and ``b``."""
    return [name for name in asked.removesuffix("?").split(";") if name]


def warn_of_unused(codecs: Mapping[str, Ref] | None, fields: Iterable[str]) -> None:
    """Warn of a choice of a codec for a field that is not read.

    Args:
        codecs: What the user gave.
        fields: The fields, as the user wrote them.
    """
    read = [f".{name}".lower() for asked in fields for name in names_in(asked)]
    for key in codecs or ():
        names = [f".{name}".lower() for name in names_in(key)]
        if not any(one.endswith(name) or name.endswith(one) for name in names for one in read):
            listed = ", ".join(sorted(name[1:] for name in read))
            warnings.warn(
                f"codecs[{key!r}] is for none of the fields that are read: {listed}", DataWarning, stacklevel=4
            )


def _codec(found: Registered) -> Codec:
    return found.component  # type: ignore[return-value]  # codecs_in picked them


def _within(suffix: str) -> str:
    return suffix.rpartition(".")[0]


def _endings(suffix: str) -> Iterator[str]:
    """Yield a suffix, and what is left of it after each dot."""
    while suffix:
        yield suffix
        suffix = suffix.partition(".")[2]
