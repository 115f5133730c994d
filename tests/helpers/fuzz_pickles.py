"""Mutated pickles, read with and without templates: ``python fuzz_pickles.py SEED SECONDS`` prints what differs."""

import functools
import random
import struct
import sys
import time

import torch

from bionemo.webdatamodule.builtins.pickle.codec import PickleCodec
from bionemo.webdatamodule.errors import DecodeError
from bionemo.webdatamodule.pickles import Policy, dumps, loads

NUMBERS = [0, 1, 2, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**61 - 1, 2**63 - 1, 2**64 - 1]


def mutated(stream, others, rng):
    """Return a stream with one to four changes."""
    stream = bytearray(stream)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(stream) or 1)
        change = rng.randrange(7)
        if change == 0 and stream:
            stream[place] = rng.randrange(256)
        elif change == 1 and stream:
            stream[place] ^= 1 << rng.randrange(8)
        elif change == 2:
            stream[place:place] = rng.randbytes(rng.randint(1, 8))
        elif change == 3:
            del stream[place : place + rng.randint(1, 8)]
        elif change == 4:
            other = rng.choice(others)
            cut = rng.randrange(len(other))
            stream[place:] = other[cut:] if rng.random() < 0.5 else other[min(place, len(other)) :]
        elif change == 5:
            packed = struct.pack("<Q", rng.choice(NUMBERS))[: rng.choice([1, 2, 4, 8])]
            stream[place : place + len(packed)] = packed
        else:
            start = rng.randrange(len(stream) or 1)
            stream[place:place] = stream[start : start + rng.randint(1, 40)]
    return bytes(stream)


def outcome(function, *args):
    """Return a value, or the class and text of a documented error; any other error is raised."""
    try:
        return function(*args)
    except DecodeError as error:
        return f"{type(error).__name__}: {error}"


def fuzz(kinds, writers, same, rng, rounds, policy=Policy()):  # noqa: B008 - frozen
    """Read mutated streams of one kind with and without templates.

    Args:
        kinds: What makes values, by name.
        writers: What pickles them, by name.
        same: Compares two values.
        rng: The source of all chances.
        rounds: Streams to read.
        policy: What they may build.

    Yields:
        Each stream, and whether both ways came to the same.
    """
    read = functools.partial(loads, policy=policy)
    make, write = rng.choice(sorted(kinds.items()))[1], rng.choice(sorted(writers.items()))[1]
    torch.manual_seed(rng.randrange(1 << 30))
    known = [write(make(rng)) for _ in range(rng.randint(2, 6))]
    codec = PickleCodec(policy)
    codec.column(list(map(memoryview, known * 2))).values()
    codec._tries = 0  # so that it learns nothing from what is changed
    for _ in range(rounds):
        stream = mutated(rng.choice(known), known, rng)
        expected, found = outcome(read, stream), outcome(codec.decode, memoryview(stream))
        good = same(expected, found)
        if good and not isinstance(expected, str):  # among others
            good = same([read(known[0]), expected], codec.column([memoryview(known[0]), memoryview(stream)]).values())
            good = good and same(expected, read(dumps(expected)))
        yield stream, good


def main(seed, seconds):
    """Fuzz for some time and print the number of streams, and those that differ."""
    from tests.builtins.pickle.test_codec import KINDS, WRITERS
    from tests.builtins.pickle.test_objects import ALLOWED, OBJECTS
    from tests.helpers.sameness import same

    rng = random.Random(seed)
    count, objects, read, bad, end = 0, 0, 0, [], time.monotonic() + seconds
    while time.monotonic() < end:
        kinds, policy = (KINDS, Policy()) if rng.random() < 0.5 else (OBJECTS, ALLOWED)
        for stream, good in fuzz(kinds, WRITERS, same, rng, 300, policy):
            count += 1
            objects += kinds is OBJECTS
            read += not isinstance(outcome(functools.partial(loads, policy=policy), stream), str)
            if not good:
                bad.append(stream)
                print(stream.hex(), flush=True)
    print(f"{count} streams, {objects} of users' classes, {read} of them values, {len(bad)} differ")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
