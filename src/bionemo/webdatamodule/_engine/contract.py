"""The contract of plugins: well-formed records, options that fit, and factories that return what their kind needs."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy

from bionemo.webdatamodule.components import (
    Codec,
    Component,
    Executor,
    KeyEncoder,
    Loader,
    ObjectStore,
    Stage,
    Store,
    Writer,
)
from bionemo.webdatamodule.errors import ConfigError, PluginError, WebDataModuleError

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

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
SCHEME = re.compile(r"\*|[a-z][a-z0-9+.-]+")
"""What a store may serve: URL schemes as in :rfc:`3986`, but for single letters, which are drives elsewhere."""

_FORMS: Mapping[str, tuple[re.Pattern[str], str]] = {
    "suffixes": (re.compile(r"[^.].*", re.DOTALL), "texts without a dot in front"),
    "schemes": (SCHEME, "URL schemes, a letter and then letters, digits, '+', '.' and '-', all in lower case"),
}
"""What a record's texts must match, and what it is in words."""

_INTERNAL = ("<frozen ", str(Path(importlib.__file__).parent), __file__, str(Path(__file__).parents[1] / "plugins.py"))
"""How the names of files begin that call code of plugins: they are not where its errors come from."""


def yielded(manager: pluggy.PluginManager, plugin: object) -> Iterator[tuple[str, Component]]:
    """Call the hooks of a registered plugin, and yield each record with the name of its hook.

    Raises:
        PluginError: If the plugin implements no hook, one that there is not, or one in another way, or if a record is
            not well-formed.
    """
    callers = manager.get_hookcallers(plugin) or []
    if not callers:
        raise PluginError("it implements no hook; mark its hook functions with @hookimpl")
    for caller in callers:
        implementation = next(i for i in caller.get_hookimpls() if i.plugin is plugin)
        if not caller.has_spec():
            if implementation.optionalhook:
                continue
            near = difflib.get_close_matches(caller.name, HOOKS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; hooks are {', '.join(HOOKS)}"
            raise PluginError(f"it implements {caller.name}, which is not a hook of this version{hint}")
        if implementation.kwargnames:
            raise PluginError(f"{caller.name} takes {', '.join(implementation.kwargnames)}, which no caller passes")
        if implementation.hookwrapper or implementation.wrapper:
            raise PluginError(f"{caller.name} is a wrapper; hooks here only register")
        components = implementation.function()
        if components is None or isinstance(components, Component) or not isinstance(components, Iterable):
            raise PluginError(
                f"{caller.name} returns {brief(components)}, not an iterable of {HOOKS[caller.name].__name__}"
            )
        for component in components:
            check_component(caller.name, component)
            yield caller.name, component


def check_component(hook: str, component: Any) -> None:
    """Refuse what is not a well-formed component of this hook."""
    kind = HOOKS[hook]
    if not isinstance(component, kind):
        raise PluginError(f"{hook} yields {brief(component)}, which is no {kind.__name__}")
    if not isinstance(component.name, str) or not _NAME.fullmatch(component.name):
        raise PluginError(
            f"{hook} yields the name {component.name!r}; names are lower-case letters, digits, '-' and '_'"
        )
    if not isinstance(component.summary, str) or not component.summary or "\n" in component.summary:
        raise PluginError(f"{hook} yields {component.name!r} without a summary of one line")
    if not callable(component.factory):
        raise PluginError(f"{hook} yields {component.name!r}, whose factory cannot be called")
    for attribute, (form, words) in _FORMS.items():
        given = getattr(component, attribute, ())
        if not isinstance(given, tuple) or not all(isinstance(one, str) and form.fullmatch(one) for one in given):
            raise PluginError(
                f"{hook} yields {component.name!r} with {attribute}={brief(given)}, which is not a tuple of {words}"
            )
    if isinstance(component, Store) and (missing := _required(component.factory)):
        raise PluginError(
            f"{hook} yields {component.name!r}, whose factory needs {' and '.join(missing)}; stores are made "
            "without options, so give them defaults"
        )
    if not isinstance(component.override, bool):
        raise PluginError(f"{hook} yields {component.name!r} with override={component.override!r}, which is not a bool")


def build(component: Component, options: Mapping[str, Any]) -> Any:
    """Call a component's factory with a user's options.

    Raises:
        ConfigError: If the factory does not take these options, or refuses their values.
        PluginError: If it fails in another way, or returns something else than its kind has to.
    """
    kind = kind_of(component)
    what = f"{kind_name(kind)} {component.name!r}"
    check_options(component, options)
    try:
        product = component.factory(**options)
    except WebDataModuleError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the {what} refuses its options {dict(options)}: {error}") from error
    except (Exception, SystemExit) as error:
        remedy = "; install what it needs" if isinstance(error, ImportError) else ""
        raise PluginError(f"the {what} cannot be made: {said(error)}{remedy}") from error
    if not PRODUCTS[kind].is_met_by(product):
        raise PluginError(f"the factory of the {what} returns {brief(product)}, not {PRODUCTS[kind].text}")
    return product


@dataclass(frozen=True, kw_only=True)
class Product:
    """What the factory of a kind of component returns.

    Attributes:
        text: In words.
        any_of: Sets of methods; it has all of one of them.
    """

    text: str
    any_of: tuple[tuple[str, ...], ...] = (("__call__",),)

    def is_met_by(self, product: object) -> bool:
        """Return whether an object is one."""
        return any(all(callable(getattr(product, name, None)) for name in names) for names in self.any_of)


_STORE = tuple(name for name in vars(ObjectStore) if not name.startswith("_"))
PRODUCTS: Mapping[type[Component], Product] = {
    Writer: Product(text="a function from names to samples"),
    KeyEncoder: Product(text="a function from a name to a key"),
    Codec: Product(text="an object with decode()", any_of=(("decode",),)),
    Stage: Product(
        text="a function from an iterator to an iterator",
        any_of=(("__call__",), ("run",)),  # run: webdataset's
    ),
    Loader: Product(text="a function from a dataset to an iterable of its items"),
    Executor: Product(text="a context manager", any_of=(("__enter__", "__exit__"),)),
    Store: Product(text=f"an object with {', '.join(_STORE)}", any_of=(_STORE,)),
}
"""What the factories of each kind return."""


def kind_of(component: Component) -> type[Component]:
    """Return the kind of a component, which may be of a subclass: :class:`Stage`, :class:`Writer` and so on."""
    return next(kind for kind in HOOKS.values() if isinstance(component, kind))


def option_names(factory: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the options that a factory declares."""
    signature = _signature(factory)
    return () if signature is None else tuple(signature.parameters)


def kind_name(kind: type[Component]) -> str:
    """Return a component class's name in words: ``KeyEncoder`` is ``key encoder``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def check_options(component: Component, options: Mapping[str, Any], *, form: str = "the option {!r}") -> None:
    """Check the names of a user's options against the signature of a component's factory.

    Args:
        component: The component.
        options: The options.
        form: How the user writes an option, for the message about a missing one.

    Raises:
        ConfigError: If an option is unknown, or a required one is missing.
    """
    signature = _signature(component.factory)
    if signature is None:
        return
    what = f"the {kind_name(kind_of(component))} {component.name!r}"
    remedy = f"`webdatamodule plugins {component.name}` describes its options"
    taken = [p for p in signature.parameters.values() if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    names = [parameter.name for parameter in taken]
    unknown = [name for name in options if name not in names]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        near = difflib.get_close_matches(unknown[0], names, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"its options are {', '.join(names)}" if names else ""
        raise ConfigError(f"{what} has no option {unknown[0]!r}; {known or 'it has no options'}")
    missing = [name for name in _required(component.factory) if name not in options]
    if missing:
        raise ConfigError(f"{what} needs {' and '.join(map(form.format, missing))}; {remedy}")


def _required(factory: Callable[..., Any]) -> list[str]:
    """Return the names of the options that have no default."""
    signature = _signature(factory)
    given = () if signature is None else signature.parameters.values()
    return [p.name for p in given if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]


def _signature(factory: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(factory)
    except (TypeError, ValueError):  # some built-in callables have none
        return None


def said(error: BaseException) -> str:
    """Return an error's type and message, and the file and line that it comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_INTERNAL)]
    known = frames and not isinstance(error, SyntaxError)  # which says where by itself
    place = f" (at {frames[-1].filename}:{frames[-1].lineno})" if known else ""
    return f"{type(error).__name__}: {error}".rstrip(": ") + place


def brief(value: object) -> str:
    """Return an object as text, or its type where that is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
