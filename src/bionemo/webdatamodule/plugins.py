"""Finding, checking, listing and looking up plugins."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

import pluggy

from bionemo.webdatamodule import hookspecs
from bionemo.webdatamodule.components import (
    Codec,
    Component,
    Executor,
    KeyEncoder,
    Loader,
    Stage,
    Store,
    Use,
    Writer,
)
from bionemo.webdatamodule.errors import (
    ConfigError,
    PluginError,
    PluginWarning,
    UnknownNameError,
    WebDataModuleError,
)

HOOKS: Mapping[str, type[Component]] = {
    "webdatamodule_writers": Writer,
    "webdatamodule_key_encoders": KeyEncoder,
    "webdatamodule_codecs": Codec,
    "webdatamodule_stages": Stage,
    "webdatamodule_loaders": Loader,
    "webdatamodule_executors": Executor,
    "webdatamodule_stores": Store,
}
"""The record that each hook yields."""

DEFAULT_PLUGINS: Mapping[str, str] = {
    "batching": "bionemo.webdatamodule.builtins.batching",
    "executors": "bionemo.webdatamodule.builtins.executors",
    "keys": "bionemo.webdatamodule.builtins.key_encoders",
    "loaders": "bionemo.webdatamodule.builtins.webloader.plugin",
    "pickles": "bionemo.webdatamodule.builtins.pickle.plugin",
    "stages": "bionemo.webdatamodule.builtins.stages",
    "stores": "bionemo.webdatamodule.builtins.stores",
}
"""The modules of the default plugins. The names they register are reserved."""

DISABLED = "WEBDATAMODULE_DISABLED_PLUGINS"
"""Environment variable: names of plugins to leave alone, comma-separated, or ``*`` for all installed ones."""

STRICT = "WEBDATAMODULE_STRICT_PLUGINS"
"""Environment variable: ``1`` makes the first plugin that fails to load an error instead of a warning."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_C = TypeVar("_C", bound=Component)


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A component and where it comes from."""

    component: Component
    plugin: str
    distribution: str
    version: str

    @property
    def kind(self) -> str:
        """The component's kind in the words of the documentation, such as ``key encoder``."""
        return kind_name(type(self.component))


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An installed plugin that is not in use, and why."""

    plugin: str
    distribution: str
    version: str
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {self.distribution} {self.version} is left out: {self.reason}"


class Plugins:
    """A set of plugins: the defaults, and those registered or loaded on top.

    Most code needs none of this and calls :func:`find`; tests and notebooks make their own set
    and pass it as ``plugins=`` to the data modules.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.NAME)
        self._manager.add_hookspecs(hookspecs)
        self._registered: list[Registered] = []
        self._reserved: frozenset[tuple[type[Component], str]] = frozenset()
        self.left_out: list[LeftOut] = []
        for name, module in DEFAULT_PLUGINS.items():
            self.register(
                importlib.import_module(module),
                name,
                distribution="bionemo-webdatamodule",
                version=_version("bionemo-webdatamodule"),
            )
        self._reserved = frozenset((type(r.component), r.component.name) for r in self._registered)

    def register(self, plugin: object, name: str, *, distribution: str = "", version: str = "") -> None:
        """Register a plugin, all of it or nothing.

        Args:
            plugin: A module, or any object, whose attributes are hook implementations.
            name: The plugin's name.
            distribution: The installed distribution that it comes from, for messages.
            version: That distribution's version.

        Raises:
            PluginError: If the plugin breaks its contract. It is then left out as a whole.
        """
        if self._manager.has_plugin(name):
            raise PluginError("another plugin already has this name", plugin=name)
        try:
            self._manager.register(plugin, name=name)
        except ValueError as error:
            raise PluginError("this very object is registered already, under another name", plugin=name) from error
        except pluggy.PluginValidationError as error:
            self._manager.unregister(name=name)
            raise PluginError(" ".join(str(error).split()), plugin=name) from error
        try:
            components = list(self._components(plugin))
        except (Exception, SystemExit) as error:
            self._manager.unregister(name=name)
            if isinstance(error, WebDataModuleError):
                raise error.located(plugin=name) from error.__cause__
            raise PluginError(f"it raised {type(error).__name__}: {error}", plugin=name) from error
        self._registered += [
            Registered(component=component, plugin=name, distribution=distribution, version=version)
            for component in components
        ]

    def load_installed(self) -> None:
        """Load every plugin of the entry-point group ``bionemo.webdatamodule``, each by itself.

        A plugin that fails is left out with a :class:`PluginWarning`; the others go on.

        Raises:
            PluginError: If a plugin fails and ``WEBDATAMODULE_STRICT_PLUGINS`` is ``1``.
        """
        disabled = {name.strip() for name in os.environ.get(DISABLED, "").split(",")}
        for entry in sorted(metadata.entry_points(group=hookspecs.NAME), key=lambda entry: (entry.name, entry.value)):
            distribution = entry.dist.name if entry.dist else "an unknown distribution"
            version = entry.dist.version if entry.dist else ""
            leave_out = functools.partial(LeftOut, plugin=entry.name, distribution=distribution, version=version)
            if disabled & {"*", entry.name}:
                self.left_out.append(leave_out(reason=f"{DISABLED} says so"))
                continue
            try:
                self.register(entry.load(), entry.name, distribution=distribution, version=version)
            except (Exception, SystemExit) as error:
                reason = error.message if isinstance(error, WebDataModuleError) else str(error) or repr(error)
                left = leave_out(reason=reason)
                self.left_out.append(left)
                if os.environ.get(STRICT) == "1":
                    raise PluginError(str(left)) from error
                warnings.warn(str(left), PluginWarning, stacklevel=2)

    @property
    def registered(self) -> list[Registered]:
        """Every component, sorted by kind, name and plugin."""
        return sorted(self._registered, key=lambda r: (r.kind, r.component.name, r.plugin))

    def find(self, kind: type[_C], name: str) -> _C:
        """Return the component of this kind and name.

        Raises:
            UnknownNameError: If no plugin registers it.
            PluginError: If several plugins do.
        """
        matches = [r for r in self._registered if type(r.component) is kind and r.component.name == name]
        if len(matches) > 1:
            plugins = " and ".join(f"{r.plugin!r} of {r.distribution} {r.version}" for r in matches)
            raise PluginError(
                f"the {kind_name(kind)} {name!r} is registered by the plugins {plugins}; "
                f"disable all but one with {DISABLED}"
            )
        if not matches:
            raise UnknownNameError(self._unknown(kind, name))
        component = matches[0].component
        assert isinstance(component, kind)  # noqa: S101 - for the type checker; matches are of this kind
        return component

    def provider(self, kind: type[Component], name: str) -> Registered | None:
        """Return where the component of this kind and name comes from, or ``None``."""
        return next((r for r in self._registered if type(r.component) is kind and r.component.name == name), None)

    def _unknown(self, kind: type[Component], name: str) -> str:
        names = sorted({r.component.name for r in self._registered if type(r.component) is kind})
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        left = [f"{plugin.plugin} ({plugin.reason})" for plugin in self.left_out]
        out = f" Left out: {', '.join(left)}; see `webdatamodule plugins`." if left else ""
        return f"no {kind_name(kind)} is named {name!r}{hint} Registered: {', '.join(names)}.{out}"

    def _components(self, plugin: object) -> Iterable[Component]:
        """Call a plugin's hooks and check what they yield."""
        seen: set[tuple[type[Component], str]] = set()
        callers = self._manager.get_hookcallers(plugin) or []
        if not callers:
            raise PluginError("it implements no hook; mark its hook functions with @hookimpl")
        for caller in callers:
            implementation = next(i for i in caller.get_hookimpls() if i.plugin is plugin)
            if not caller.has_spec():
                if implementation.optionalhook:
                    continue
                near = difflib.get_close_matches(caller.name, HOOKS, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; hooks are {', '.join(HOOKS)}"
                raise PluginError(f"it implements {caller.name}, which is no hook of this version{hint}")
            if implementation.kwargnames:
                raise PluginError(f"{caller.name} takes {', '.join(implementation.kwargnames)}, which no caller passes")
            if implementation.hookwrapper or implementation.wrapper:
                raise PluginError(f"{caller.name} is a wrapper; hooks here only register")
            yielded = implementation.function()
            if yielded is None or isinstance(yielded, Component) or not isinstance(yielded, Iterable):
                raise PluginError(
                    f"{caller.name} returns {_brief(yielded)}, not an iterable of {HOOKS[caller.name].__name__}"
                )
            for component in yielded:
                self._check(caller.name, component)
                identity = (type(component), component.name)
                if identity in seen:
                    raise PluginError(f"{caller.name} registers {component.name!r} twice")
                if identity in self._reserved:
                    raise PluginError(f"{caller.name} registers {component.name!r}, which is the name of a default")
                seen.add(identity)
                yield component

    @staticmethod
    def _check(hook: str, component: object) -> None:
        """Refuse what is not a well-formed component of this hook."""
        kind = HOOKS[hook]
        if type(component) is not kind:
            raise PluginError(f"{hook} yields {_brief(component)}, which is no {kind.__name__}")
        if not isinstance(component.name, str) or not _NAME.fullmatch(component.name):
            raise PluginError(
                f"{hook} yields the name {component.name!r}; names are lower-case letters, digits, '-' and '_'"
            )
        if not isinstance(component.summary, str) or not component.summary or "\n" in component.summary:
            raise PluginError(f"{hook} yields {component.name!r} without a summary of one line")
        if not callable(component.factory):
            raise PluginError(f"{hook} yields {component.name!r}, whose factory cannot be called")


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


def find(kind: type[_C], name: str, plugins: Plugins | None = None) -> _C:
    """Return the component of this kind and name; a default is found without loading any other plugin.

    Args:
        kind: One of the component classes, such as :class:`~bionemo.webdatamodule.Stage`.
        name: The component's name.
        plugins: Where to look; by default among the installed plugins.

    Raises:
        UnknownNameError: If no plugin registers it.
        PluginError: If several plugins do.
    """
    return _set_with(kind, name, plugins).find(kind, name)


def provider(kind: type[Component], name: str, plugins: Plugins | None = None) -> Registered | None:
    """Return a component with the plugin, distribution and version it comes from, or ``None``."""
    return _set_with(kind, name, plugins).provider(kind, name)


def _set_with(kind: type[Component], name: str, plugins: Plugins | None) -> Plugins:
    if plugins is not None:
        return plugins
    return default_plugins() if default_plugins().provider(kind, name) else installed_plugins()


def as_use(ref: object) -> Use | None:
    """Return a reference by name as a :class:`Use`, or ``None`` where it is no name.

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
        if callable(ref) or kind is Executor:
            return ref
        raise ConfigError(f"a {kind_name(kind)} is a name, a Use or a callable, not {_brief(ref)}")
    component = find(kind, use.name, plugins)
    return build(component, use.options)


def build(component: Component, options: Mapping[str, Any]) -> Any:
    """Call a component's factory with a user's options.

    Raises:
        ConfigError: If the factory does not take these options, or refuses their values.
        PluginError: If it fails in another way, or gives nothing.
    """
    kind = kind_name(type(component))
    signature = _signature(component.factory)
    try:
        if signature is not None:
            signature.bind(**options)
    except TypeError as error:
        raise ConfigError(f"the {kind} {component.name!r} takes {signature}: {error}") from error
    try:
        product = component.factory(**options)
    except WebDataModuleError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the {kind} {component.name!r} refuses its options {dict(options)}: {error}") from error
    except (Exception, SystemExit) as error:
        remedy = "; install what it needs" if isinstance(error, ImportError) else ""
        raise PluginError(
            f"the {kind} {component.name!r} cannot be made: {type(error).__name__}: {error}{remedy}"
        ) from error
    if product is None:
        raise PluginError(f"the factory of the {kind} {component.name!r} gives nothing")
    return product


def kind_name(kind: type[Component]) -> str:
    """Return a component class's name in words: ``KeyEncoder`` is ``key encoder``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def _signature(factory: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(factory)
    except (TypeError, ValueError):  # some built-in callables have none
        return None


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # used from a source tree
        return "0"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
