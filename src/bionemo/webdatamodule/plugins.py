"""Finding, checking, listing and looking up plugins."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, TypeVar

import pluggy

from bionemo.webdatamodule import hookspecs
from bionemo.webdatamodule._engine.contract import (
    HOOKS,
    PRODUCTS,
    SCHEME,
    brief,
    build,
    check_options,
    kind_name,
    kind_of,
    option_names,
    said,
    yielded,
)
from bionemo.webdatamodule.components import Codec, Component, Executor, Use
from bionemo.webdatamodule.errors import (
    ConfigError,
    PluginError,
    PluginWarning,
    UnknownNameError,
    WebDataModuleError,
)

__all__ = [
    "DEFAULT_PLUGINS",
    "DISABLED",
    "HOOKS",
    "SCHEME",
    "STRICT",
    "LeftOut",
    "Plugins",
    "Registered",
    "as_use",
    "build",
    "check_options",
    "default_plugins",
    "find",
    "installed_entry_points",
    "installed_plugins",
    "kind_name",
    "kind_of",
    "named",
    "option_names",
    "provider",
    "resolve",
]

DEFAULT_PLUGINS: Mapping[str, str] = {
    "batching": "bionemo.webdatamodule.builtins.batching",
    "batch_by_size": "bionemo.webdatamodule.builtins.batch_by_size",
    "codecs": "bionemo.webdatamodule.builtins.codecs",
    "executors": "bionemo.webdatamodule.builtins.executors",
    "keys": "bionemo.webdatamodule.builtins.key_encoders",
    "loaders": "bionemo.webdatamodule.builtins.webloader.plugin",
    "pack": "bionemo.webdatamodule.builtins.pack",
    "pickles": "bionemo.webdatamodule.builtins.pickle.plugin",
    "stages": "bionemo.webdatamodule.builtins.stages",
    "weighted": "bionemo.webdatamodule.builtins.weighted",
    "stores": "bionemo.webdatamodule.builtins.stores",
}
"""The modules of the default plugins, by plugin name."""

DISABLED = "WEBDATAMODULE_DISABLED_PLUGINS"
"""Environment variable: comma-separated names of plugins not to load, defaults included; ``*`` means every installed
plugin, but no default."""

STRICT = "WEBDATAMODULE_STRICT_PLUGINS"
"""Environment variable: ``1`` raises an error for a plugin that fails to load, instead of a warning."""

_C = TypeVar("_C", bound=Component)


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A component and its origin.

    Attributes:
        component: The record.
        plugin: Name of the plugin that registers it: the name of its entry point.
        distribution: The installed distribution of the plugin; empty for a plugin that code registers.
        version: That distribution's version.
        default: Whether it is a default plugin.
    """

    component: Component
    plugin: str
    distribution: str = ""
    version: str = ""
    default: bool = False

    @property
    def kind(self) -> str:
        """The component's kind in words, such as ``key encoder``."""
        return kind_name(kind_of(self.component))

    @property
    def origin(self) -> str:
        """Plugin and distribution, for messages."""
        return _origin(self.plugin, self.distribution, self.version)

    @property
    def where(self) -> Mapping[str, str]:
        """Plugin and distribution for an error's ``where``; empty for a default."""
        if self.default:
            return {}
        distribution = {"distribution": f"{self.distribution} {self.version}"} if self.distribution else {}
        return {"plugin": self.plugin, **distribution}

    def build(self, options: Mapping[str, Any]) -> Any:
        """Call the component's factory, as :func:`build` does; errors name plugin and distribution.

        Raises:
            ConfigError, PluginError: As :func:`build`.
        """
        try:
            return build(self.component, options)
        except WebDataModuleError as error:
            raise error.located(**self.where) from error.__cause__


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An installed plugin that was left out, and why.

    Attributes:
        plugin: The plugin's name.
        distribution: Its distribution.
        version: That distribution's version.
        reason: Why it was left out.
        remedy: What to do; empty if the user disabled it.
    """

    plugin: str
    distribution: str
    version: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{_origin(self.plugin, self.distribution, self.version)} is left out: {self.reason}{remedy}"


class Plugins:
    """A set of plugins: the defaults, and those that are registered or loaded.

    Most code calls :func:`find` instead. Tests and notebooks make their own set and pass it as ``plugins=`` to the
    data modules.

    Args:
        defaults: Names of the default plugins, see :data:`DEFAULT_PLUGINS`; by default all that
            ``WEBDATAMODULE_DISABLED_PLUGINS`` does not name.

    Attributes:
        left_out: Plugins that were left out.

    Raises:
        ConfigError: If there is no default plugin of a name.
    """

    def __init__(self, *, defaults: Iterable[str] | None = None) -> None:
        self._manager = pluggy.PluginManager(hookspecs.NAME)
        self._manager.add_hookspecs(hookspecs)
        self._registered: list[Registered] = []
        self.left_out: list[LeftOut] = []
        self._register_defaults(defaults)

    def _register_defaults(self, names: Iterable[str] | None) -> None:
        version = _version("bionemo-webdatamodule")
        disabled = _disabled() if names is None else ()
        for name in DEFAULT_PLUGINS if names is None else names:
            if name not in DEFAULT_PLUGINS:
                raise ConfigError(f"no default plugin is named {name!r}; they are {', '.join(DEFAULT_PLUGINS)}")
            if name in disabled:
                self._leave_out(name, "bionemo-webdatamodule", version, reason=f"{DISABLED} names it")
                continue
            module = importlib.import_module(DEFAULT_PLUGINS[name])
            self.register(module, name, distribution="bionemo-webdatamodule", version=version)
        self._registered = [replace(found, default=True) for found in self._registered]

    def register(self, plugin: object, name: str, *, distribution: str = "", version: str = "") -> None:
        """Register a plugin completely or not at all.

        Args:
            plugin: A module, or any object, whose attributes are hook implementations.
            name: The plugin's name.
            distribution: Its installed distribution, for messages.
            version: That distribution's version.

        Raises:
            PluginError: If the plugin breaks its contract.
        """
        if self._manager.has_plugin(name):
            other = "a default plugin has this name; rename its entry point"
            both = "another plugin has this name; rename one of the two entry points"
            raise PluginError(other if name in DEFAULT_PLUGINS else both, plugin=name)
        try:
            self._manager.register(plugin, name=name)
        except ValueError as error:
            first = self._manager.get_name(plugin)
            raise PluginError(f"the plugin {first!r} is the same module", plugin=name) from error
        except pluggy.PluginValidationError as error:
            self._manager.unregister(name=name)
            raise PluginError(" ".join(str(error).split()), plugin=name) from error
        try:
            components = list(self._components(plugin))
        except BaseException as error:  # also SystemExit, and panics of extensions in Rust
            self._manager.unregister(name=name)
            if isinstance(error, KeyboardInterrupt):
                raise
            if isinstance(error, WebDataModuleError):
                raise error.located(plugin=name) from error.__cause__
            raise PluginError(f"it raises {said(error)}", plugin=name) from error
        self._registered += [
            Registered(component=component, plugin=name, distribution=distribution, version=version)
            for component in components
        ]

    def load_installed(self) -> None:
        """Load every plugin of the entry-point group ``bionemo.webdatamodule``.

        A plugin that fails is left out with a :class:`PluginWarning`, and the others are loaded.
        Output of plugins during their import goes to standard error.

        Raises:
            PluginError: If a plugin fails and ``WEBDATAMODULE_STRICT_PLUGINS`` is ``1``.
        """
        disabled = _disabled()
        for entry in installed_entry_points():
            distribution = entry.dist.name if entry.dist else "unknown"
            version = entry.dist.version if entry.dist else ""
            if not {"*", entry.name}.isdisjoint(disabled):
                self._leave_out(entry.name, distribution, version, reason=f"{DISABLED} names it")
                continue
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    self.register(entry.load(), entry.name, distribution=distribution, version=version)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # as in register
                reason = error.message if isinstance(error, WebDataModuleError) else said(error)
                left = self._leave_out(entry.name, distribution, version, reason, _remedy(entry, distribution, error))
                if os.environ.get(STRICT) == "1":
                    raise PluginError(str(left)) from error
                warnings.warn(str(left), PluginWarning, stacklevel=2)

    def _leave_out(self, plugin: str, distribution: str, version: str, reason: str, remedy: str = "") -> LeftOut:
        left = LeftOut(plugin=plugin, distribution=distribution, version=version, reason=reason, remedy=remedy)
        self.left_out.append(left)
        return left

    @property
    def registered(self) -> list[Registered]:
        """Every component, including overridden ones, sorted by kind, name and plugin."""
        return sorted(self._registered, key=lambda r: (r.kind, r.component.name, r.plugin))

    @property
    def overridden(self) -> list[Registered]:
        """The default components that a plugin overrides."""
        replaced = {_identity(r.component) for r in self._registered if r.component.override and not r.default}
        return [r for r in self.registered if r.default and _identity(r.component) in replaced]

    @property
    def default_suffixes(self) -> Mapping[str, str]:
        """The name of the default codec of each suffix that one decodes, by the suffix in lower case."""
        return {
            suffix.lower(): found.component.name
            for found in self._registered
            if found.default and isinstance(found.component, Codec)
            for suffix in found.component.suffixes
        }

    def find(self, kind: type[_C], name: str) -> _C:
        """Return the component of this kind and name.

        Raises:
            UnknownNameError: If no plugin registers it.
            PluginError: If several plugins do.
        """
        component = self.lookup(kind, name).component
        assert isinstance(component, kind)  # noqa: S101 - for the type checker; it is of this kind
        return component

    def lookup(self, kind: type[Component], name: str) -> Registered:
        """Return the component of this kind and name with its plugin and distribution.

        Raises:
            UnknownNameError: If no plugin registers it.
            PluginError: If several plugins do.
        """
        found = named(self._registered, kind, name)
        if found is None:
            raise UnknownNameError(self._unknown(kind, name))
        return found

    def provider(self, kind: type[Component], name: str) -> Registered | None:
        """Return the component of this kind and name with its origin, or ``None``."""
        try:
            return self.lookup(kind, name)
        except UnknownNameError:
            return None

    def _unknown(self, kind: type[Component], name: str) -> str:
        names = sorted({r.component.name for r in self._registered if isinstance(r.component, kind)})
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        left = [f"{plugin.plugin} ({plugin.reason})" for plugin in self.left_out]
        out = f" Plugins left out: {', '.join(left)}; see `webdatamodule plugins`." if left else ""
        return f"no {kind_name(kind)} is named {name!r}{hint} Registered: {', '.join(names) or 'none'}.{out}"

    def _components(self, plugin: object) -> Iterable[Component]:
        """Call a plugin's hooks, and refuse what clashes with another component of its own or with a default."""
        seen: set[tuple[type[Component], str]] = set()
        for hook, component in yielded(self._manager, plugin):
            identity = _identity(component)
            if identity in seen:
                raise PluginError(f"{hook} registers {component.name!r} twice")
            if not component.override and identity in self._reserved():
                raise PluginError(
                    f"{hook} registers {component.name!r}, which is the name of a default; "
                    "choose another name, or set override=True to replace the default"
                )
            self._check_suffixes(hook, component)
            seen.add(identity)
            yield component

    def _check_suffixes(self, hook: str, component: Component) -> None:
        """Refuse a codec that claims a suffix of a default: installing it must not change how fields are decoded."""
        if not isinstance(component, Codec) or component.override:
            return
        taken = self.default_suffixes
        for suffix in component.suffixes:
            if suffix.lower() in taken:
                raise PluginError(
                    f"{hook} registers {component.name!r} for the suffix {suffix!r}, which the default codec "
                    f"{taken[suffix.lower()]!r} decodes; leave that suffix out, or set override=True to replace it"
                )

    def _reserved(self) -> set[tuple[type[Component], str]]:
        return {_identity(r.component) for r in self._registered if r.default}


def named(registered: Iterable[Registered], kind: type[Component], name: str) -> Registered | None:
    """Return the component of this kind and name among some, one that overrides before a default one.

    Raises:
        PluginError: If several plugins register it.
    """
    matches = [found for found in registered if isinstance(found.component, kind) and found.component.name == name]
    if any(found.component.override and not found.default for found in matches):
        matches = [found for found in matches if not found.default]
    if len(matches) > 1:
        origins = " and by the ".join(found.origin for found in matches)
        raise PluginError(
            f"the {kind_name(kind)} {name!r} is registered by the {origins}; "
            f"disable all but one, for example with {DISABLED}={matches[-1].plugin}"
        )
    return matches[0] if matches else None


@functools.cache
def default_plugins() -> Plugins:
    """Return the default plugins alone."""
    return Plugins()


@functools.cache
def installed_plugins() -> Plugins:
    """Return the default plugins and all installed ones, found once in a process."""
    plugins = Plugins()
    plugins.load_installed()
    return plugins


def installed_entry_points() -> list[metadata.EntryPoint]:
    """Return the entry points of installed plugins, in a repeatable order, without importing any."""
    return sorted(metadata.entry_points(group=hookspecs.NAME), key=lambda entry: (entry.name, entry.value))


def find(kind: type[_C], name: str, plugins: Plugins | None = None) -> _C:
    """Return the component of this kind and name.

    Args:
        kind: One of the component classes, such as :class:`~bionemo.webdatamodule.Stage`.
        name: The component's name.
        plugins: Where to look; by default among the installed plugins.

    Raises:
        UnknownNameError: If no plugin registers it.
        PluginError: If several plugins do.
    """
    return (plugins or installed_plugins()).find(kind, name)


def provider(kind: type[Component], name: str, plugins: Plugins | None = None) -> Registered | None:
    """Return a component with the plugin, distribution and version it comes from, or ``None``."""
    return (plugins or installed_plugins()).provider(kind, name)


def as_use(ref: object) -> Use | None:
    """Return a reference by name as a :class:`Use`, or ``None`` where it is not a name.

    Raises:
        ConfigError: If it is a mapping other than ``{"name": ..., "options": {...}}``.
    """
    if isinstance(ref, str):
        return Use(ref)
    if isinstance(ref, Use):
        return ref
    if isinstance(ref, Mapping):
        options = ref.get("options") or {}
        if set(ref) <= {"name", "options"} and isinstance(ref.get("name"), str) and isinstance(options, Mapping):
            return Use(ref["name"], **options)
        raise ConfigError(f"a component is given as {{'name': ..., 'options': {{...}}}}, not {ref!r}")
    return None


def resolve(kind: type[Component], ref: object, plugins: Plugins | None = None) -> Any:
    """Return the working object that a reference means.

    Args:
        kind: The kind of component that is wanted.
        ref: A name, a :class:`Use`, a mapping ``{"name": ..., "options": {...}}``, or the working object itself.
        plugins: Where to look names up; by default among the installed plugins.

    Raises:
        ConfigError: If the options do not fit the component, or the reference is none of these.
        UnknownNameError: If no plugin registers the name.
        PluginError: If several plugins do, or the component's factory fails.
    """
    use = as_use(ref)
    if use is None:
        if callable(ref) or kind is Executor or (PRODUCTS[kind].is_met_by(ref) and not isinstance(ref, type)):
            return ref
        raise ConfigError(f"a {kind_name(kind)} is a name, a Use or a callable, not {brief(ref)}")
    return (plugins or installed_plugins()).lookup(kind, use.name).build(use.options)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # used from a source tree
        return "0"


def _disabled() -> frozenset[str]:
    """Return the names of plugins that the environment variable gives."""
    return frozenset(filter(None, map(str.strip, os.environ.get(DISABLED, "").split(","))))


def _identity(component: Component) -> tuple[type[Component], str]:
    return kind_of(component), component.name


def _origin(plugin: str, distribution: str, version: str) -> str:
    return f"plugin {plugin!r}" + (f" of the distribution {distribution} {version}".rstrip() if distribution else "")


def _remedy(entry: metadata.EntryPoint, distribution: str, error: BaseException) -> str:
    """Return what to do about a plugin that does not load."""
    gone = isinstance(error, ModuleNotFoundError) and f"{entry.module}.".startswith(f"{error.name}.")
    if gone:
        return (
            f"the distribution names the module {entry.module}, which is not there, as after a move or a rename of an "
            f"editable install; install it again, or run `pip uninstall {distribution}`"
        )
    if isinstance(error, PluginError) and "is the same module" in error.message:
        return f"it is installed twice, perhaps under an old name; run `pip uninstall {distribution}`"
    shared = isinstance(error, PluginError) and "has this name" in error.message
    if shared or entry.name in DEFAULT_PLUGINS:  # the variable would disable the other as well
        return f"or run `pip uninstall {distribution}`"
    wanting = "install what it needs, or " if isinstance(error, ImportError) else ""
    return f"{wanting}disable it with {DISABLED}={entry.name}"
