from bionemo.webdatamodule.testing import KeyEncoderConformance


class TestKeyEncoder(KeyEncoderConformance):
    """The key encoder does what every key encoder has to do."""

    name = "$name"
    takes_any_name = True
