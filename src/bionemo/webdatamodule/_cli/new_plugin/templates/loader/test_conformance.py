from bionemo.webdatamodule.testing import LoaderConformance


class TestLoader(LoaderConformance):
    """The loader does what every loader has to do."""

    name = "$name"
