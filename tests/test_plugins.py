"""Plugins: discovery isolates and names what is broken, and names are looked up."""

import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace

import pytest

from bionemo.webdatamodule import Executor, KeyEncoder, Loader, Stage, Use, Writer, hookimpl, hookspecs, plugins
from bionemo.webdatamodule.errors import ConfigError, PluginError, PluginWarning, UnknownNameError
from bionemo.webdatamodule.plugins import HOOKS, Plugins, as_use, build, find, resolve

GOOD = """
from bionemo.webdatamodule import Stage, hookimpl

@hookimpl
def webdatamodule_stages():
    yield Stage(name="{component}", summary="a test stage", factory=lambda: iter)
"""


CODEC = """
from bionemo.webdatamodule import Codec, hookimpl

@hookimpl
def webdatamodule_codecs():
    yield Codec(name="acme-codec", summary="a test codec", suffixes={suffixes}, factory=lambda: None)
"""

STORE = """
from bionemo.webdatamodule import Store, hookimpl

@hookimpl
def webdatamodule_stores():
    yield Store(name="acme-store", summary="a test store", schemes={schemes}, factory=dict)
"""


def load():
    """Load what is installed, and return the set and the warnings about the plugins under test."""
    found = Plugins()
    with pytest.warns(PluginWarning) as caught:
        found.load_installed()
    return found, [str(warning.message) for warning in caught if "acme" in str(warning.message)]


def test_every_hook_has_a_record_and_a_spec():
    """The table of records and the module of specs name the same hooks."""
    specs = [name for name in vars(hookspecs) if name.startswith("webdatamodule_")]

    assert sorted(specs) == sorted(HOOKS)


def test_every_hook_spec_shows_a_complete_plugin():
    """Each hook's docstring holds an example that registers a component when it is run."""
    for hook in HOOKS:
        doc = textwrap.dedent(getattr(hookspecs, hook).__doc__.partition("\n")[2])
        code = textwrap.dedent(doc.partition("::\n")[2])
        namespace = {"__name__": f"example_of_{hook}"}
        sys.modules[namespace["__name__"]] = type(sys)(namespace["__name__"])
        exec(compile(code, hook, "exec", dont_inherit=True), namespace)
        found = Plugins()
        found.register(type("Example", (), {hook: staticmethod(namespace[hook])})(), "docs")

        assert [HOOKS[hook]] == [type(r.component) for r in found.registered if r.plugin == "docs"]


def test_an_installed_plugin_is_found_by_name(install):
    """A component of an installed distribution is looked up by its name, with its provenance."""
    install("acme-good", GOOD.format(component="acme-stage"))
    found = Plugins()
    found.load_installed()
    entry = found.provider(Stage, "acme-stage")

    assert ("acme", "acme-good", "1.0") == (entry.plugin, entry.distribution, entry.version)
    assert found.find(Stage, "acme-stage") is entry.component


BROKEN = {
    "import error": ("import pyarrow_not_there", "ModuleNotFoundError: No module named 'pyarrow_not_there' (at "),
    "import exits": ("import sys\nsys.exit()", "SystemExit (at "),
    "import raises": ("raise RuntimeError('no licence')", "plugin_of_acme_broken.py:1); disable it with WEBDATAMOD"),
    "misspelt hook": (
        "from bionemo.webdatamodule import hookimpl\n@hookimpl\ndef webdatamodule_writer(): return ()",
        "it implements webdatamodule_writer, which is not a hook of this version; did you mean webdatamodule_writers?",
    ),
    "argument with a default": (
        "from bionemo.webdatamodule import hookimpl\n@hookimpl\ndef webdatamodule_stages(config=None): return ()",
        "webdatamodule_stages takes config, which no caller passes",
    ),
    "argument without one": (
        "from bionemo.webdatamodule import hookimpl\n@hookimpl\ndef webdatamodule_stages(config): return ()",
        "config",
    ),
    "wrapper": (
        """
        import pluggy
        @pluggy.HookimplMarker("bionemo.webdatamodule")(wrapper=True)
        def webdatamodule_stages():
            return (yield)
        """,
        "webdatamodule_stages is a wrapper; hooks here only register",
    ),
    "wrong record": (
        "from bionemo.webdatamodule import hookimpl\n@hookimpl\ndef webdatamodule_writers(): return ['parquet']",
        "webdatamodule_writers yields 'parquet', which is no Writer",
    ),
    "record of another kind": (
        GOOD.format(component="a").replace("webdatamodule_stages", "webdatamodule_writers"),
        "which is no Writer",
    ),
    "raises": (
        "from bionemo.webdatamodule import hookimpl\n@hookimpl\ndef webdatamodule_writers(): raise OSError('disk')",
        "it raises OSError: disk (at ",
    ),
    "returns None": (
        "from bionemo.webdatamodule import hookimpl\n@hookimpl\ndef webdatamodule_writers(): return None",
        "webdatamodule_writers returns None, not an iterable of Writer",
    ),
    "no hook": ("x = 1", "it implements no hook; mark its hook functions with @hookimpl"),
    "bad name": (GOOD.format(component="No Good"), "yields the name 'No Good'"),
    "two lines": (
        GOOD.format(component="a").replace("a test stage", "one\\ntwo"),
        "yields 'a' without a summary of one line",
    ),
    "no factory": (
        GOOD.format(component="a").replace("factory=lambda: iter", "factory=3"),
        "whose factory cannot be called",
    ),
    "reserved name": (GOOD.format(component="shuffle"), "registers 'shuffle', which is the name of a default"),
    "suffixes as text": (
        CODEC.format(suffixes="'hex'"),
        "yields 'acme-codec' with suffixes='hex', which is not a tuple of texts without a dot in front",
    ),
    "suffixes of another type": (CODEC.format(suffixes="(5,)"), "with suffixes=(5,), which is not a tuple of texts"),
    "a suffix with a dot": (CODEC.format(suffixes="('.hex',)"), "with suffixes=('.hex',), which is not a tuple"),
    "no suffixes": (CODEC.format(suffixes="None"), "with suffixes=None, which is not a tuple"),
    "a suffix of a default": (
        CODEC.format(suffixes="('hex', 'TXT')"),
        "registers 'acme-codec' for the suffix 'TXT', which the default codec 'text' decodes; leave that suffix",
    ),
    "a list of suffixes": (CODEC.format(suffixes="['hex']"), "with suffixes=['hex'], which is not a tuple of texts"),
    **{
        f"schemes {given}": (STORE.format(schemes=given), f"with schemes={given}, which is not a tuple of URL schemes")
        for given in ("['mem']", "('my_mem',)", "('MEM',)", "('mem://',)", "('m',)", "'mem'")
    },
    "a store with options": (
        STORE.format(schemes="('mem',)").replace("factory=dict", "factory=lambda *, root: {}"),
        "yields 'acme-store', whose factory needs root; stores are made without options, so give them defaults",
    ),
    "a panic": ("class Panic(BaseException): pass\nraise Panic('rust')", "Panic: rust (at "),
    "twice": (GOOD.format(component="a").replace("yield", "for _ in '12': yield"), "registers 'a' twice"),
}


@pytest.mark.parametrize(("code", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_named_and_left_out_as_a_whole(install, code, reason):
    """A plugin that breaks its contract is left out with its name and the reason, and a good one beside it works."""
    install("acme-broken", code, name="acme-b")
    install("acme-fine", GOOD.format(component="acme-stage"), name="acme-f")
    found, messages = load()

    [message] = messages

    assert message.startswith("plugin 'acme-b' of the distribution acme-broken 1.0 is left out: ")
    assert reason in message
    assert ["acme-stage"] == [r.component.name for r in found.registered if r.plugin.startswith("acme")]


def test_a_second_plugin_of_one_name_is_left_out(install):
    """Two distributions with one entry-point name do not replace each other."""
    install("acme-one", GOOD.format(component="a"), name="acme")
    install("acme-two", GOOD.format(component="b"), name="acme")
    found, messages = load()

    [message] = messages

    assert message.startswith(
        "plugin 'acme' of the distribution acme-two 1.0 is left out: another plugin has this name"
    )
    assert message.endswith("; or run `pip uninstall acme-two`")
    assert ["a"] == [r.component.name for r in found.registered if r.plugin == "acme"]


def test_a_plugin_of_a_defaults_name_is_told_to_take_another(install):
    """Disabling that name would disable the default as well, so the remedy is another."""
    install("acme-codecs", GOOD.format(component="a"), name="codecs")
    _, (message,) = load()
    assert message.startswith("plugin 'codecs' of the distribution acme-codecs 1.0 is left out: a default plugin has")
    assert message.endswith("; rename its entry point; or run `pip uninstall acme-codecs`")


def test_two_plugins_with_one_component_clash_when_it_is_asked_for(install):
    """A clash is not an error until the name is used; then both plugins are named."""
    install("acme-one", GOOD.format(component="same"), name="acme-1")
    install("acme-two", GOOD.format(component="same"), name="acme-2")
    found = Plugins()
    found.load_installed()

    with pytest.raises(
        PluginError, match=r"plugin 'acme-1' of the distribution acme-one 1.0 and by the plugin 'acme-2' of the dis"
    ):
        found.find(Stage, "same")


@pytest.mark.parametrize("disabled", ["acme", "x, acme", "*"])
def test_a_disabled_plugin_is_not_even_imported(install, monkeypatch, disabled):
    """The environment variable keeps a plugin from being imported, and the listing says so."""
    module = install("acme-off", GOOD.format(component="acme-stage"))
    monkeypatch.setenv(plugins.DISABLED, disabled)
    found = Plugins()
    found.load_installed()

    assert ["WEBDATAMODULE_DISABLED_PLUGINS names it"] == [
        left.reason for left in found.left_out if left.plugin == "acme"
    ]
    assert module not in sys.modules


def test_strict_mode_makes_the_first_failure_an_error(install, monkeypatch):
    """With the strict variable a broken plugin stops the program."""
    install("acme-broken", "import not_there_at_all", name="aaa-first")
    monkeypatch.setenv(plugins.STRICT, "1")

    with pytest.raises(PluginError, match=r"plugin 'aaa-first' of the distribution acme-broken 1.0 is left out: Mod"):
        Plugins().load_installed()


def test_an_unknown_name_offers_a_near_one_and_what_was_left_out(install):
    """The error for an unknown name helps with the spelling and mentions plugins that failed."""
    install("acme-broken", "import pyarrow_not_there")
    found, _ = load()

    with pytest.raises(UnknownNameError, match=r"no stage is named 'shufle'; did you mean 'shuffle'\?.*acme \(ModuleN"):
        found.find(Stage, "shufle")


def test_a_broken_plugin_does_not_keep_a_default_from_being_found(install):
    """Looking a default up loads the installed plugins, since one may override it; a broken one is left out."""
    install("acme-broken", "import pyarrow_not_there")
    found, _ = load()

    assert "shuffle" == find(Stage, "shuffle", found).name


OVERRIDE = GOOD.format(component="shuffle").replace("factory=", "override=True, factory=")


def test_a_component_overrides_the_default_of_its_name(install):
    """`override=True` replaces a default of the same kind and name, and the set says what is overridden."""
    install("acme-one", OVERRIDE, name="acme-1")
    found = Plugins()
    found.load_installed()

    assert iter is resolve(Stage, "shuffle", found)
    assert "acme-1" == found.lookup(Stage, "shuffle").plugin
    assert [("stages", "shuffle")] == [(r.plugin, r.component.name) for r in found.overridden]


def test_two_overrides_of_one_default_are_an_error_that_names_both(install, monkeypatch):
    """Which of two overrides is meant is for the user to say; disabling one does."""
    install("acme-one", OVERRIDE, name="acme-1")
    install("acme-two", OVERRIDE, name="acme-2")
    found = Plugins()
    found.load_installed()

    with pytest.raises(
        PluginError, match=r"'acme-1' of .* and by the plugin 'acme-2' of .*disable all but one"
    ) as error:
        found.find(Stage, "shuffle")
    variable, _, name = error.value.message.rpartition(" ")[2].partition("=")
    monkeypatch.setenv(variable, name)
    again = Plugins()
    again.load_installed()

    assert iter is resolve(Stage, "shuffle", again)


def test_default_plugins_can_be_disabled_by_name(monkeypatch):
    """The environment variable takes defaults; their names are then unknown, and free for others."""
    monkeypatch.setenv(plugins.DISABLED, "stages, keys")
    found = Plugins()

    assert ["stages", "keys"] == [left.plugin for left in found.left_out][::-1]
    with pytest.raises(UnknownNameError, match=r"Plugins left out: keys \(WEBDATAMODULE_DISABLED_PLUGINS names it\)"):
        found.find(Stage, "shuffle")
    found.register(Shuffles(), "mine")

    assert iter is resolve(Stage, "shuffle", found)


def test_a_set_without_any_default_can_be_made():
    """`defaults=()` begins with nothing, and a list of names with those."""
    empty = Plugins(defaults=())
    empty.register(Shuffles(), "mine")

    assert ["shuffle"] == [r.component.name for r in empty.registered]
    assert {"key encoder"} == {r.kind for r in Plugins(defaults=["keys"]).registered}
    with pytest.raises(ConfigError, match=r"no default plugin is named 'key'; they are .*keys"):
        Plugins(defaults=["key"])


class Shuffles:
    """A plugin with a stage of a default's name that does not say that it overrides it."""

    @hookimpl
    def webdatamodule_stages(self):
        yield Stage(name="shuffle", summary="a test stage", factory=lambda: iter)


def test_a_name_of_a_default_is_reserved_unless_it_is_overridden():
    """The message names the two remedies, and each works."""
    found = Plugins()
    with pytest.raises(PluginError, match="choose another name, or set override=True to replace the default"):
        found.register(Shuffles(), "mine")
    for change in ({"name": "mine"}, {"override": True}):
        found.register(Registers(replace(next(Shuffles().webdatamodule_stages()), **change)), f"by {change}")

    assert iter is resolve(Stage, "mine", found) is resolve(Stage, "shuffle", found)


@dataclass(frozen=True)
class Registers:
    """A plugin of one stage."""

    component: Stage

    @hookimpl
    def webdatamodule_stages(self):
        yield self.component


@dataclass(frozen=True, kw_only=True)
class Costly(Stage):
    """A record with a field more."""

    cost: int = 0


def test_records_may_be_subclassed():
    """A record of a subclass is found as its kind."""
    found = Plugins(defaults=())
    found.register(Registers(Costly(name="mine", summary="a stage", factory=lambda: iter, cost=3)), "mine")

    assert 3 == found.find(Stage, "mine").cost
    assert "stage" == found.lookup(Stage, "mine").kind


def test_defaults_of_every_kind_are_registered():
    """The default plugins offer what the data modules are built from."""
    names = {
        kind: sorted(r.component.name for r in Plugins().registered if type(r.component) is kind)
        for kind in (Writer, KeyEncoder, Loader, Executor)
    }

    assert {
        Writer: ["pickles"],
        KeyEncoder: ["dashes", "escaped"],
        Loader: ["webloader"],
        Executor: ["processes", "serial"],
    } == names


def test_an_object_can_be_registered_in_process():
    """A plugin needs no distribution: an object with hook implementations will do."""

    class Mine:
        @hookimpl
        def webdatamodule_stages(self):
            return [Stage(name="mine", summary="mine", factory=lambda *, n=1: n.__add__)]

    found = Plugins()
    found.register(Mine(), "mine")

    assert 5 == resolve(Stage, Use("mine", n=3), found)(2)
    with pytest.raises(PluginError, match="another plugin has this name"):
        found.register(Mine(), "mine")


def test_references_by_name_take_three_forms():
    """A name, a Use and a mapping from YAML mean the same."""
    use = Use("shuffle", size=3)

    assert [use, use, Use("batch")] == [
        as_use(use),
        as_use({"name": "shuffle", "options": {"size": 3}}),
        as_use("batch"),
    ]
    assert as_use(len) is None


def failing_factory(*, error=None):
    """Raise an error, or return nothing."""
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("No module named 'pyarroww'"),
            "cannot be made: ModuleNotFoundError: .*install what",
        ),
        (RuntimeError("no licence"), "cannot be made: RuntimeError: no licence"),
        (SystemExit(0), "cannot be made: SystemExit: 0"),
        (None, "returns None, not a function from an iterator to an iterator"),
    ],
)
def test_a_factory_that_fails_is_named(error, said):
    """Heavy imports happen there, so this is where a missing package shows."""
    component = Stage(name="acme", summary="a stage", factory=failing_factory)
    with pytest.raises(PluginError, match=rf"the (factory of the )?stage 'acme' {said}"):
        build(component, {"error": error})


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (Use("shuffle"), "the stage 'shuffle' needs the option 'size'; `webdatamodule plugins shuffle` describes its"),
        (Use("shuffle", siz=1), r"the stage 'shuffle' has no option 'siz'; did you mean 'size'\?"),
        (Use("shuffle", size=1, x=1), "the stage 'shuffle' has no option 'x'; its options are size, initial"),
        (Use("untuple", x=1), "the stage 'untuple' has no option 'x'; it has no options"),
        (Use("shuffle", size=0), "size is at least 1, not 0"),
        ({"nam": "shuffle"}, "a component is given as"),
        (3, "a stage is a name, a Use or a callable, not 3"),
    ],
)
def test_wrong_options_are_refused_by_name(ref, message):
    """Options that do not fit are refused when the reference is resolved."""
    with pytest.raises(ConfigError, match=message):
        resolve(Stage, ref)


def test_importing_the_package_imports_neither_torch_nor_plugins():
    """The package's import is light, also with warnings as errors."""
    code = (
        "import sys, bionemo.webdatamodule, bionemo.webdatamodule.hookspecs, bionemo.webdatamodule.plugins\n"
        "heavy = [m for m in ('torch', 'lightning', 'webdataset') if m in sys.modules]\n"
        "defaults = [m for m in sys.modules if '.builtins.' in m]\n"
        "print(heavy, defaults)"
    )
    shown = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)

    assert "[] []" == shown.stdout.strip()
