"""What every component has to do, whatever its kind."""

from __future__ import annotations

import contextlib
import inspect
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar, NoReturn

import pytest

from bionemo.webdatamodule.components import Component
from bionemo.webdatamodule.errors import PluginError
from bionemo.webdatamodule.hookspecs import NAME
from bionemo.webdatamodule.plugins import (
    DEFAULT_PLUGINS,
    Registered,
    build,
    installed_plugins,
    kind_name,
)
from bionemo.webdatamodule.testing.processes import ProcessError, imported_with


class NonconformingError(AssertionError):
    """A component breaks a rule of its kind; the message says which component, what is wrong and what to change."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The component under test, and how to speak of it.

    Attributes:
        registered: The component and where it comes from.
        options: The options that the test class gives it.
    """

    registered: Registered
    options: Mapping[str, Any]

    @property
    def module(self) -> str:
        """Import name of the plugin that registers the component."""
        if self.registered.default:
            return DEFAULT_PLUGINS[self.registered.plugin]
        entries = metadata.entry_points(group=NAME, name=self.registered.plugin)
        return next(e.module for e in entries if e.dist and e.dist.name == self.registered.distribution)

    def make(self) -> Any:
        """Return a new working object."""
        return build(self.registered.component, self.options)

    def wrong(self, what: str, remedy: str, cause: BaseException | None = None) -> NoReturn:
        """Fail the test, saying who does what, and what to do instead."""
        __tracebackhide__ = True
        found = self.registered
        who = f"{found.origin}, {found.kind} {found.component.name!r}"
        raise NonconformingError(f"{who}: {what}; {remedy}") from cause

    @contextlib.contextmanager
    def trying(self, what: str, remedy: str) -> Iterator[None]:
        """Fail the test if the block raises anything but a failure."""
        __tracebackhide__ = True
        try:
            yield
        except NonconformingError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it becomes the failure's cause
            self.wrong(f"{what} raises {type(error).__name__}: {error}", remedy, error)


class ComponentConformance:
    """Base of the suites; use the one of the component's kind.

    The component is looked up among the installed plugins, so its packaging is tested too.

    Attributes:
        kind: The component's class.
        name: The component's name.
        light: Third-party packages that importing the plugin's module may import.
            It is imported on every rank whenever any plugin is looked up, so big ones belong inside functions.
    """

    kind: ClassVar[type[Component]]
    name: ClassVar[str]
    light: ClassVar[tuple[str, ...]] = ("numpy",)

    @pytest.fixture
    def options(self) -> Mapping[str, Any]:
        """Options for the component's factory; override where it needs any."""
        return {}

    @pytest.fixture
    def subject(self, options: Mapping[str, Any]) -> Subject:
        """The component that is tested."""
        return self.find(options)

    def find(self, options: Mapping[str, Any]) -> Subject:
        """Look the component up.

        Raises:
            NonconformingError: If it is not registered, or several plugins register it.
        """
        try:
            registered = installed_plugins().lookup(self.kind, self.name)
        except PluginError as error:
            raise NonconformingError(
                f"the {kind_name(self.kind)} {self.name!r} cannot be used: {error.message} Install the plugin that "
                f"offers it (pip install -e .), and check its entry point in the group {NAME!r}"
            ) from error
        return Subject(registered=registered, options=options)

    def test_options_are_spelled_out_keywords(self, subject: Subject) -> None:
        """Options are keyword-only and each has a name, so that they can be checked, listed and put in YAML."""
        for option in inspect.signature(subject.registered.component.factory).parameters.values():
            if option.kind is not option.KEYWORD_ONLY:
                subject.wrong(
                    f"its factory takes {str(option)!r}, which is not a keyword-only option",
                    "spell options out after a '*', or use @dataclass(kw_only=True)",
                )

    def test_pickles(self, subject: Subject) -> None:
        """The working object pickles, since workers and other machines get it that way."""
        self.pickled(subject)

    def test_importing_the_plugin_is_light(self, subject: Subject) -> None:
        """Importing the plugin imports no big package."""
        try:
            heavy = [name for name in imported_with(subject.module) if name not in self._own(subject)]
        except ProcessError as error:
            subject.wrong(f"importing {subject.module} alone fails: {error}", "make it import by itself", error)
        if heavy:
            subject.wrong(
                f"importing {subject.module} imports {', '.join(heavy)}",
                "import them inside the functions that need them, or name small ones in the test's 'light'",
            )

    def pickled(self, subject: Subject) -> Any:
        """Return the working object after a round trip through pickle."""
        with subject.trying(
            "pickling its working object",
            "make it a frozen dataclass or another importable class that holds its options only, no open files "
            "and no inner functions",
        ):
            return pickle.loads(pickle.dumps(subject.make()))

    def _own(self, subject: Subject) -> tuple[str, ...]:
        return (subject.module.partition(".")[0], *self.light)
