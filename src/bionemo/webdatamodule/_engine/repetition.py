"""Detection of stages that draw the same random numbers at each call, in global order for every batch."""

from __future__ import annotations

import copy
import itertools
import random
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.stages import chain, describe
from bionemo.webdatamodule.pickles import dumps

_SEEDING = {"Generator", "Random", "RandomState", "default_rng", "manual_seed", "seed", "seed_everything"}
_REPEATED = 4  # samples that a stage is tried with


def repeating(stages: Sequence[Any], samples: Sequence[Any], places: Sequence[context.Context]) -> Iterator[str]:
    """Yield the names of stages that draw the same random numbers at each call.

    Stages whose code makes or seeds a generator are tried: given one sample several times they make different things
    of it, and the same ones in another place. No random number of the process is lost by it.

    Args:
        stages: The stages.
        samples: What the first of them gets; one is tried.
        places: Two places.
    """
    for number, stage in enumerate(stages):
        if not _seeds(stage):
            continue
        try:
            one, other = (_tried(stages[: number + 1], samples[0], place) for place in places)
        except Exception:  # noqa: BLE001 - it is a trial, and what is wrong with a stage shows when it runs
            return
        if one == other and len(set(one)) > 1:
            yield describe(stage)


def _tried(stages: Sequence[Any], sample: Any, place: context.Context) -> list[bytes]:
    import torch

    state, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - users' stages may draw from it
    try:
        with context.at(place), torch.random.fork_rng(devices=[]):
            copies = [copy.deepcopy(sample) for _ in range(_REPEATED)]
            made = chain([copy.copy(stage) for stage in stages], copies)
            return [dumps(found) for found in itertools.islice(made, _REPEATED)]
    finally:
        random.setstate(state)
        np.random.set_state(arrays)  # noqa: NPY002


def _seeds(stage: Any) -> bool:
    """Return whether the code of a stage names what makes or seeds generators of random numbers."""
    stage = getattr(stage, "func", stage)  # of functools.partial
    found = [stage] if hasattr(stage, "__code__") else list(vars(type(stage)).values())
    codes = [code for each in found if getattr(each, "__name__", "") != "__init__" and (code := _code(each))]
    while codes:
        code = codes.pop()
        if _SEEDING.intersection(code.co_names):
            return True
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return False


def _code(function: object) -> types.CodeType | None:
    return getattr(function, "__code__", None)
