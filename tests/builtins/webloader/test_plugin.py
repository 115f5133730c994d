"""The options of the default loader, which it checks when it is made."""

import multiprocessing

import numpy as np
import pytest
import torch

from bionemo.webdatamodule import Use, WebDataModule
from bionemo.webdatamodule.builtins.webloader.plugin import WebLoader
from bionemo.webdatamodule.errors import ConfigError

METHODS = ", ".join(multiprocessing.get_all_start_methods())


@pytest.mark.parametrize("where", ["kwargs_wld", "loader"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_workers", True, "num_workers is a whole number, not True"),
        ("num_workers", 1.0, "num_workers is a whole number, not 1.0"),
        ("num_workers", "2", "num_workers is a whole number, not '2'"),
        ("num_workers", None, "num_workers is a whole number, not None"),
        ("num_workers", -1, "num_workers is at least 0, not -1"),
        ("prefetch_factor", 0, "prefetch_factor is at least 1, not 0"),
        ("prefetch_factor", 1.5, "prefetch_factor is a whole number, not 1.5"),
        ("prefetch_factor", True, "prefetch_factor is a whole number, not True"),
        ("timeout", -1, "timeout is at least 0, not -1"),
        ("timeout", "x", "timeout is a number, not 'x'"),
        ("timeout", float("nan"), "timeout is a number, not nan"),
        ("timeout", True, "timeout is a number, not True"),
        ("generator", 5, "generator is a torch.Generator, not 5"),
        ("worker_init_fn", 5, "worker_init_fn is a function or its import path, not 5"),
        ("persistent_workers", "yes", "persistent_workers is one of True, False, not 'yes'"),
        ("pin_memory", "yes", "pin_memory is one of True, False, not 'yes'"),
        ("in_order", None, "in_order is one of True, False, not None"),
        (
            "multiprocessing_context",
            "nope",
            f"multiprocessing_context='nope' is no way to start workers here; there are {METHODS}",
        ),
        (
            "multiprocessing_context",
            [],
            f"multiprocessing_context=[] is no way to start workers here; there are {METHODS}",
        ),
    ],
)
def test_a_wrong_value_is_an_error_of_the_data_module(where, name, value, message):
    """Its constructor names the option, the split and what is expected, wherever the option was given."""
    options = {name: value}
    given = {"kwargs_wld": {"val": options}} if where == "kwargs_wld" else {"loader": Use("webloader", **options)}
    with pytest.raises(ConfigError) as caught:
        WebDataModule({"val": "data"}, None, "cls", 4, **given)
    assert (message, {"split": "val"}) == (caught.value.message, caught.value.where)


def test_values_are_taken_as_what_they_are():
    """A whole number of NumPy is an int afterwards, and an import path the function."""
    generator, context = torch.Generator(), multiprocessing.get_context("spawn")
    made = WebLoader(
        num_workers=np.int64(2),
        timeout=30,
        generator=generator,
        worker_init_fn="math.sqrt",
        multiprocessing_context=context,
    )

    assert (int, 2, 30.0, 3.0) == (type(made.num_workers), made.num_workers, made.timeout, made.worker_init_fn(9))
    assert made.generator is generator
    assert made.multiprocessing_context is context
