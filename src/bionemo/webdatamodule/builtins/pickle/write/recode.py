"""Recode pickles of one kind by copying: the first one shows where its data lie before and after.

Pickles that differ in nothing but their data, in equally many bytes, become canonical pickles that differ in nothing
but these data. So after the first of a kind the bytes are copied from their position in the one stream to that in the
other, and nothing is built; :mod:`.trace` says what counts as data, and why that is sound.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any, Final

from bionemo.webdatamodule.builtins.pickle.fast.template import memories, signature
from bionemo.webdatamodule.builtins.pickle.fast.trace import trace
from bionemo.webdatamodule.builtins.pickle.write.layouts import Kind, make_kind
from bionemo.webdatamodule.pickles import Policy, recode

_MOST_KINDS: Final = 4096
"""Kinds that one recoder knows at most, a few kilobytes each."""

_PATIENCE: Final = 256
"""Kinds that may be learnt before one comes back: data of no kind should not pay for it forever."""

_FAILURES: Final = 64
"""Pickles that may turn out not to be of any kind, for the same reason."""

_MOST_OPEN: Final = 16
"""Kinds with an open vector, which are tried one after the other."""

if "torch" in sys.modules:  # then pickles of tensors are likely, and forked workers need not import it each
    importlib.import_module("bionemo.webdatamodule.builtins.pickle.safe.torch_types")


class Recoder:
    """Recodes pickles as :func:`~bionemo.webdatamodule.pickles.recode` does, byte for byte, and faster.

    Args:
        policy: What pickles may build.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._kinds: dict[int, list[Kind]] = {}  # by length
        self._open: list[Kind] = []
        self._sizes: dict[Any, list[int]] = {}  # of the memories of the first stream of each program
        self._learnt = 0
        self._used = 0
        self._failed = 0

    def __call__(self, data: bytes) -> bytes:
        """Return the canonical form of a pickle.

        Raises:
            RefusedPickleError, DecodeError: As :func:`~bionemo.webdatamodule.pickles.loads`.
        """
        kinds: tuple[Kind, ...] = (*self._kinds.get(len(data), ()), *self._open)
        for kind in kinds:
            found: bytes | None = kind.recode(data)
            if found is not None:
                self._used += 1
                return found
        result: bytes = recode(data, policy=self._policy)
        if self._failed < _FAILURES and self._learnt < min(_MOST_KINDS, _PATIENCE + 4 * self._used):
            if self._learn(data, result) is None:
                self._failed += 1
            else:
                self._learnt += 1
        return result

    def _learn(self, data: bytes, result: bytes) -> Kind | None:
        """Return the kind of a stream that was recoded, if it can be recoded by copying, and keep it."""
        allow = self._policy.allow
        before, after = trace(data, allowed=allow), trace(result, allowed=allow)
        if before is None or after is None or before.users:
            return None
        try:
            sizes = [leaf.stop - leaf.start for leaf in memories(before)]
            known = self._sizes.setdefault(signature(data, before), sizes)
        except ValueError:
            known = sizes
        differ = [number for number, size in enumerate(sizes) if size != known[number]]
        if len(differ) == 1:
            kind = make_kind(data, before, result, after, memories(before)[differ[0]])
            if kind is not None and kind.recode(data) == result:
                self._open = [kind, *self._open][:_MOST_OPEN]
                return kind
        kind = make_kind(data, before, result, after, None)
        if kind is None or kind.recode(data) != result:
            return None
        self._kinds.setdefault(len(data), []).append(kind)
        return kind


@functools.lru_cache(maxsize=4)
def recoder(policy: Policy) -> Recoder:
    """Return this process's recoder for a policy, so that a shard knows the kinds of the one before."""
    return Recoder(policy)
