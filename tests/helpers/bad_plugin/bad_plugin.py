"""A plugin of broken components: each breaks one rule, and the kit has to say which. One of each kind is good."""

# ruff: noqa: BLE001, D103, PLW0108, PTH123, SIM115 - its faults are its purpose

import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from bionemo.webdatamodule import Codec, Executor, KeyEncoder, Loader, Sample, Stage, Writer, hookimpl
from bionemo.webdatamodule.errors import InputError

SOURCE = {name: {"txt": name.encode(), "n.cls": b"%d" % number} for number, name in enumerate(["a", "b.1", "c", "d"])}
FACTORIES: dict[str, dict[str, Callable]] = {
    kind: {} for kind in ("writer", "key encoder", "stage", "loader", "executor")
}


def offer(kind, name):
    """Put a factory among the plugin's components."""

    def add(factory):
        FACTORIES[kind][name] = factory
        return factory

    return add


@offer("writer", "good")
@dataclass(frozen=True, kw_only=True)
class Good:
    option: int = 0

    def names(self):
        return list(SOURCE)

    def fingerprints(self, names):
        return [str(len(name)) if name in SOURCE else "" for name in names]

    def __call__(self, names):
        for name in names:
            yield self.read(name)

    def read(self, name):
        if name not in SOURCE:
            raise InputError(f"there is no {name!r}")
        return Sample(name, dict(SOURCE[name]))


@offer("writer", "tuples")
class Tuples(Good):
    def read(self, name):
        return tuple(super().read(name))


@offer("writer", "pairs")
class Pairs(Good):
    def read(self, name):
        return Sample(name, list(super().read(name).files.items()))


@offer("writer", "text")
class Text(Good):
    def read(self, name):
        return Sample(name, {"txt": name})


@offer("writer", "other-bytes")
class OtherBytes(Good):
    def read(self, name):
        return Sample(name, {**super().read(name).files, "txt": b"something else"})


@offer("writer", "own-order")
class OwnOrder(Good):
    def __call__(self, names):
        return super().__call__(sorted(names))


@offer("writer", "everything")
class Everything(Good):
    def __call__(self, names):
        yield from super().__call__(self.names())


@offer("writer", "once")
class Once(Good):
    read_already = False

    def __call__(self, names):
        if not self.read_already:
            object.__setattr__(self, "read_already", True)
            yield from super().__call__(names)


@offer("writer", "a-list")
class AList(Good):
    def __call__(self, names):
        return list(super().__call__(names))


@offer("writer", "all-at-once")
class AllAtOnce(Good):
    def __call__(self, names):
        return iter(list(super().__call__(names)))


@offer("writer", "passes-over")
class PassesOver(Good):
    def __call__(self, names):
        return super().__call__([name for name in names if name in SOURCE])


@offer("writer", "key-error")
class WrongError(Good):
    def read(self, name):
        return Sample(name, dict(SOURCE[name]))


@offer("writer", "says-no-name")
class SaysNoName(Good):
    def read(self, name):
        if name not in SOURCE:
            raise FileNotFoundError("a file is missing")
        return super().read(name)


@offer("writer", "too-early")
class TooEarly(Good):
    def __call__(self, names):
        for name in names:
            self.read(name)
        yield from super().__call__(names)


@offer("writer", "upper-case")
class UpperCase(Good):
    def read(self, name):
        return Sample(name, {"TXT": name.encode()})


@offer("writer", "slash")
class Slash(Good):
    def read(self, name):
        return Sample(name, {"text/plain": name.encode()})


@offer("writer", "unlisted")
class Unlisted(Good):
    def names(self):
        return list(SOURCE)[1:]


@offer("writer", "listed-once")
class ListedOnce(Good):
    def names(self):
        return iter(SOURCE)


_ORDERS = itertools.cycle([list(SOURCE), list(reversed(SOURCE))])


@offer("writer", "unsorted")
class Unsorted(Good):
    def names(self):
        return list(next(_ORDERS))


@offer("writer", "one-mark")
class OneMark(Good):
    def fingerprints(self, names):
        return "1"


@offer("writer", "mark-raises")
class MarkRaises(Good):
    def fingerprints(self, names):
        return [str(len(self.read(name).files)) for name in names]


@offer("writer", "mark-invents")
class MarkInvents(Good):
    def fingerprints(self, names):
        return [str(len(name)) for name in names]


@offer("writer", "mark-changes")
class MarkChanges(Good):
    def fingerprints(self, names):
        return [str(random.random()) if name in SOURCE else "" for name in names]


@offer("writer", "mark-constant")
class MarkConstant(Good):
    def fingerprints(self, names):
        return ["1" if name in SOURCE else "" for name in names]


@offer("writer", "open-file")
class OpenFile(Good):
    def __call__(self, names):
        object.__setattr__(self, "file", open(os.devnull))
        yield from super().__call__(names)
        self.file.close()


@offer("writer", "inner-function")
def inner_function(*, option=0):
    return lambda names: Good()(names)


@offer("writer", "forgets")
class Forgets(Good):
    full = True

    def __init__(self, *, option=0):
        super().__init__(option=option)
        object.__setattr__(self, "full", True)

    def __getstate__(self):
        return {"full": False}

    def __setstate__(self, state):
        object.__setattr__(self, "full", state["full"])

    def read(self, name):
        return super().read(name) if self.full else Sample(name, {"txt": b""})


@offer("writer", "hash")
class Hash(Good):
    def read(self, name):
        super().read(name)
        return Sample(name, {"txt": str(hash(name)).encode()})


@offer("writer", "no-pickle")
class NoPickle(Good):
    def read(self, name):
        super().read(name)
        return Sample(name, {"x.pyd": b"no pickle"})


@offer("writer", "recodes")
class Recodes(Good):
    codecs: ClassVar = {"txt": "padded"}


class Padded:
    def decode(self, view):
        return str(view, "utf-8").rstrip()

    def recode(self, data):
        return [data.rstrip(), b" "]


@offer("writer", "positional")
class Positional(Good):
    def __init__(self, option=0):
        super().__init__(option=option)


@offer("writer", "any-option")
class AnyOption(Good):
    def __init__(self, **options):
        super().__init__()


@offer("key encoder", "good")
@dataclass(frozen=True, kw_only=True)
class Hexadecimal:
    def __call__(self, name):
        return name.encode("utf-8", "surrogatepass").hex()


@offer("key encoder", "bytes")
class Bytes(Hexadecimal):
    def __call__(self, name):
        return super().__call__(name).encode()


@offer("key encoder", "refuses-odd-names")
class RefusesOddNames(Hexadecimal):
    def __call__(self, name):
        return name.encode("ascii").hex()


@offer("key encoder", "refuses-ordinary-names")
class RefusesOrdinaryNames(Hexadecimal):
    def __call__(self, name):
        if " " in name:
            raise ValueError("a name has a space")
        return super().__call__(name)


@offer("key encoder", "key-error")
class RaisesKeyError(Hexadecimal):
    def __call__(self, name):
        return {"ä": "a"}[name] if not name.isascii() else super().__call__(name)


@offer("key encoder", "says-nothing")
class SaysNothing(Hexadecimal):
    def __call__(self, name):
        if "/" in name:
            raise ValueError
        return super().__call__(name)


@offer("key encoder", "dots")
class Dots(Hexadecimal):
    def __call__(self, name):
        return f"{super().__call__(name)}.{len(name)}"


@offer("key encoder", "drops")
class Drops(Hexadecimal):
    def __call__(self, name):
        return super().__call__(name.replace(".", ""))


@offer("key encoder", "counts")
class Counts(Hexadecimal):
    counter = itertools.count()

    def __call__(self, name):
        return f"{super().__call__(name)}-{next(self.counter)}"


@offer("key encoder", "hash")
class HashKey(Hexadecimal):
    def __call__(self, name):
        return f"{super().__call__(name)}-{hash(name)}"


@dataclass(frozen=True, kw_only=True)
class Forward:
    def __call__(self, samples):
        for sample in samples:
            yield [value + 1 for value in sample]


FACTORIES["stage"]["good"] = Forward


@offer("stage", "wrong")
class Wrong(Forward):
    def __call__(self, samples):
        return ([value + 2 for value in sample] for sample in samples)


@offer("stage", "collects")
class Collects(Forward):
    def __call__(self, samples):
        yield from super().__call__(iter(list(samples)))


@offer("stage", "a-list")
class StageList(Forward):
    def __call__(self, samples):
        return list(super().__call__(samples))


@offer("stage", "an-iterable")
class StageIterable(Forward):
    def __call__(self, samples):
        return _Iterable(super().__call__(samples))


class _Iterable:
    def __init__(self, results):
        self.results = results

    def __iter__(self):
        return self.results


@offer("stage", "nothing")
class Nothing(Forward):
    def __call__(self, samples):
        return None


@offer("stage", "ends-early")
class EndsEarly(Forward):
    def __call__(self, samples):
        return iter(())


@offer("stage", "adds-one")
class AddsOne(Forward):
    def __call__(self, samples):
        yield from super().__call__(samples)
        yield [0]


@offer("stage", "changes-input")
class ChangesInput(Forward):
    def __call__(self, samples):
        for sample in samples:
            sample[0] += 1
            yield sample


@offer("stage", "remembers")
class Remembers(Forward):
    def __init__(self):
        object.__setattr__(self, "seen", [])

    def __call__(self, samples):
        for sample in samples:
            self.seen.append(sample)
            yield [len(self.seen)]


@offer("stage", "random")
class Random(Forward):
    def __init__(self):
        object.__setattr__(self, "seed", random.random())

    def __call__(self, samples):
        return ([self.seed] for _ in samples)


@offer("stage", "stage-lambda")
def stage_lambda():
    return lambda samples: Forward()(samples)


@offer("stage", "main-only")
class MainOnly(Forward):
    def __call__(self, samples):
        return ([os.getpid()] for _ in samples)


@offer("stage", "other-columns")
class OtherColumns(Forward):
    def columns(self, fields):
        return fields.values()[:1]


@offer("stage", "swallows")
class Swallows(Forward):
    def __call__(self, samples):
        try:
            yield from super().__call__(samples)
        except Exception:
            return


@offer("stage", "renames")
class Renames(Forward):
    def __call__(self, samples):
        try:
            yield from super().__call__(samples)
        except Exception as error:
            raise ValueError("something went wrong") from error


@dataclass(frozen=True, kw_only=True)
class PlainLoader:
    num_workers: int = 0
    keeps_workers: ClassVar[bool] = False
    in_order: ClassVar[bool] = True

    def __call__(self, dataset):
        from torch.utils.data import DataLoader

        return DataLoader(dataset, batch_size=None, num_workers=self.num_workers)


FACTORIES["loader"]["good"] = PlainLoader


class Altered:
    """An iterable whose passes are those of another, altered by a function."""

    def __init__(self, inner, alter):
        self.inner = inner
        self.alter = alter

    def __iter__(self):
        return self.alter(self.inner)


@offer("loader", "loses")
class Loses(PlainLoader):
    def __call__(self, dataset):
        return Altered(super().__call__(dataset), lambda items: (item for item in items if item.number != 7))


@offer("loader", "one-epoch")
class OneEpoch(PlainLoader):
    def __call__(self, dataset):
        return iter(super().__call__(dataset))


@offer("loader", "left-over")
class LeftOver(PlainLoader):
    def __call__(self, dataset):
        inner = super().__call__(dataset)
        left = []

        def go_on(items):
            left[:] = left or [iter(items)]
            yield from left[0]
            left.clear()

        return Altered(inner, go_on)


@offer("loader", "batches")
class Batches(PlainLoader):
    def __call__(self, dataset):
        return Altered(super().__call__(dataset), lambda items: ([item] for item in items))


@offer("loader", "reorders")
class Reorders(PlainLoader):
    def __call__(self, dataset):
        from torch.utils.data import DataLoader

        def by_worker(items):
            yield from sorted(items, key=lambda item: item.worker)

        return Altered(DataLoader(dataset, batch_size=None, num_workers=self.num_workers), by_worker)


@offer("loader", "keeps-back")
class KeepsBack(PlainLoader):
    def __call__(self, dataset):
        def keep_back(items):
            yield from list(items)[:-2]

        return Altered(super().__call__(dataset), keep_back)


@offer("loader", "miscounts")
@dataclass(frozen=True, kw_only=True)
class Miscounts(PlainLoader):
    def __call__(self, dataset):
        from torch.utils.data import DataLoader

        return DataLoader(dataset, batch_size=None, num_workers=1)


@offer("loader", "leaves-threads")
class LeavesThreads(PlainLoader):
    def __call__(self, dataset):
        def beside_a_thread(items):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            yield from items

        return Altered(super().__call__(dataset), beside_a_thread)


@offer("loader", "keeps-silently")
@dataclass(frozen=True, kw_only=True)
class KeepsSilently(PlainLoader):
    keeps_workers: ClassVar[bool] = True


@offer("loader", "ends-on-error")
class EndsOnError(PlainLoader):
    def __call__(self, dataset):
        def until_error(items):
            try:
                yield from items
            except Exception:
                return

        return Altered(super().__call__(dataset), until_error)


@offer("loader", "hides-cause")
class HidesCause(PlainLoader):
    def __call__(self, dataset):
        def hide(items):
            try:
                yield from items
            except Exception:
                raise RuntimeError("loading failed") from None

        return Altered(super().__call__(dataset), hide)


@offer("executor", "good")
class Threads:
    pool = None

    def __init__(self, *, workers: int = 2):
        self.workers = workers

    def __enter__(self):
        self.pool = futures.ThreadPoolExecutor(self.workers)
        return self.pool

    def __exit__(self, *error):
        self.pool.shutdown()
        self.pool = None


@offer("executor", "closed")
def closed():
    return futures.ThreadPoolExecutor(1)


@offer("executor", "no-context")
def no_context():
    return object()


@offer("executor", "no-executor")
@contextmanager
def no_executor():
    with futures.ThreadPoolExecutor(1) as pool:
        yield _Wrapped(pool)


class _Wrapped:
    def __init__(self, pool):
        self.submit = pool.submit
        self.map = pool.map


class _Inline(futures.Executor):
    """Runs a task at once; what becomes of its result is up to the subclass."""

    def submit(self, function, /, *args, **kwargs):
        future = futures.Future()
        try:
            future.set_result(self.result(function(*args, **kwargs)))
        except Exception as error:
            future.set_exception(self.error(error))
        return future

    def result(self, result):
        return result

    def error(self, error):
        return error


@offer("executor", "own-futures")
class OwnFutures(_Inline):
    def submit(self, function, /, *args, **kwargs):
        return function(*args, **kwargs)


@offer("executor", "no-results")
class NoResults(_Inline):
    def result(self, result):
        return None


@offer("executor", "mixes-up")
class MixesUp(_Inline):
    def submit(self, function, /, *args, **kwargs):
        return super().submit(function, *((3,) if args == (4,) else args), **kwargs)


@offer("executor", "any-order")
class AnyOrder(_Inline):
    def map(self, function, *iterables, timeout=None, chunksize=1):
        return reversed(list(super().map(function, *iterables)))


@offer("executor", "text-errors")
class TextErrors(_Inline):
    def error(self, error):
        return RuntimeError(str(error))


@offer("executor", "small-messages")
class SmallMessages(_Inline):
    def result(self, result):
        return result[: 1 << 20] if isinstance(result, bytes) else result


@offer("executor", "leaves-early")
@contextmanager
def leaves_early():
    pool = _Never()
    yield pool


class _Never(futures.Executor):
    def submit(self, function, /, *args, **kwargs):
        return futures.Future()


@offer("executor", "hides-errors")
class HidesErrors(_Inline):
    def __exit__(self, kind, error, trace):
        return True


@offer("executor", "functions-only")
class FunctionsOnly(_Inline):
    def submit(self, function, /, *args, **kwargs):
        return super().submit(function, *args, **kwargs) if function.__name__ else None


def components(kind, record):
    """Yield the records of a kind."""
    for name, factory in FACTORIES[kind].items():
        yield record(name=name, summary=f"{name} {kind}", factory=factory)


@hookimpl
def webdatamodule_writers():
    return components("writer", Writer)


@hookimpl
def webdatamodule_codecs():
    yield Codec(name="padded", summary="text with one blank at the end", factory=Padded)


@hookimpl
def webdatamodule_key_encoders():
    return components("key encoder", KeyEncoder)


@hookimpl
def webdatamodule_stages():
    return components("stage", Stage)


@hookimpl
def webdatamodule_loaders():
    return components("loader", Loader)


@hookimpl
def webdatamodule_executors():
    return components("executor", Executor)
