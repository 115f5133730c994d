from __future__ import annotations

import numpy as np
import pytest
import torch

from bionemo.webdatamodule.errors import ConfigError
from bionemo_webdatamodule_h5ad import Densify


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_positions_and_values_become_a_vector(make):
    """What follows in the sample follows the vector."""
    sample = (make([1, 3]), make([5.0, 7.0]), {"label": 1})
    ((x, obs),) = Densify(size=5)(iter([sample]))

    assert [0.0, 5.0, 0.0, 7.0, 0.0] == x.tolist()
    assert {"label": 1} == obs


def test_pairs_become_the_vector_alone():
    """Its type is that of the values."""
    (x,) = Densify(size=3)(iter([(np.array([], np.int32), np.array([], np.float32))]))

    assert (np.float32, [0, 0, 0]) == (x.dtype, x.tolist())


@pytest.mark.parametrize("sample", [np.zeros(3), (np.array([3]), np.array([1.0])), (np.array([1]),)])
def test_samples_that_do_not_fit_are_refused(sample):
    """With the size or the type that came."""
    with pytest.raises(ConfigError, match="densify"):
        list(Densify(size=3)(iter([sample])))


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_wrong_sizes_are_refused_at_once(size):
    """Before any sample."""
    with pytest.raises(ConfigError, match="size is a whole number"):
        Densify(size=size)
