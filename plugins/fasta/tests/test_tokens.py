from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from bionemo.webdatamodule.errors import ConfigError, DecodeError
from bionemo_webdatamodule_fasta import Tokenize
from bionemo_webdatamodule_fasta.tokens import NUCLEOTIDES, RESIDUES


def tokenize(sample, **options):
    """Return what the stage makes of one sample."""
    (value,) = Tokenize(**options)(iter([sample]))
    return value


def test_residues_are_numbered_as_esm_2_numbers_them():
    """The first twenty letters go by their frequency; figures are those of the published vocabulary."""
    assert {
        "<cls>": 0,
        "<pad>": 1,
        "<eos>": 2,
        "<unk>": 3,
        "L": 4,
        "M": 20,
        "C": 23,
        "X": 24,
        "-": 30,
        "<mask>": 32,
    } == {token: RESIDUES[token] for token in ("<cls>", "<pad>", "<eos>", "<unk>", "L", "M", "C", "X", "-", "<mask>")}
    assert list(range(33)) == list(RESIDUES.values())
    assert [20, 15, 7, 3] == tokenize("MKV*").tolist()


def test_nucleotides_of_rna_are_those_of_dna():
    """All IUPAC letters have numbers of their own, but U is read as T."""
    assert [4, 5, 6, 7, 7, 8] == tokenize("ACGTUN", vocabulary="nucleotides").tolist()
    assert set(range(22)) == set(NUCLEOTIDES.values())
    assert set("ACGTUNRYSWKMBDHV.-") <= set(NUCLEOTIDES)


@pytest.mark.parametrize("kind", [str, str.encode, lambda s: bytearray(s.encode()), lambda s: memoryview(s.encode())])
def test_text_and_bytes_are_taken(kind):
    """The sample may be the sequence itself."""
    value = tokenize(kind("MKV"))

    assert torch.int64 == value.dtype
    assert torch.equal(torch.tensor([20, 15, 7]), value)


def test_arrays_are_given_on_request():
    """For pipelines without torch."""
    value = tokenize("MKV", output="numpy")

    assert isinstance(value, np.ndarray)
    assert np.int64 == value.dtype
    assert [20, 15, 7] == value.tolist()


def test_one_field_of_a_tuple_list_or_dictionary_is_replaced():
    """Other fields, and the sample that came in, stay as they are."""
    sample = {"seq.txt": "MK", "desc.txt": "about"}

    whole = tokenize(sample, field="seq.txt", output="numpy")
    assert ["seq.txt", "desc.txt"] == list(whole)
    assert [20, 15] == whole["seq.txt"].tolist()
    assert {"seq.txt": "MK", "desc.txt": "about"} == sample
    first, last = tokenize(("about", "MK"), field=-1)
    assert ("about", [20, 15]) == (first, last.tolist())
    assert [[20], "x"] == [tokenize(["M", "x"], field=0)[0].tolist(), "x"]
    assert isinstance(tokenize(("M",), field=0), tuple)


@pytest.mark.parametrize(
    ("sample", "field"), [(("M",), 1), (("M",), "seq"), ({"a": "M"}, "seq"), ("M", 0), (("M",), None), (7, None)]
)
def test_samples_without_such_a_field_are_refused(sample, field):
    """The message says what came in its place."""
    with pytest.raises(ConfigError, match=r"tokenize (finds no field|takes text)"):
        tokenize(sample, field=field)


def test_lower_case_is_folded_unless_it_means_something():
    """Soft-masked letters are letters; with a vocabulary of both cases they keep their own numbers."""
    assert [20, 15] == tokenize("mk").tolist()
    assert [3, 3] == tokenize("mk", fold=False).tolist()
    assert [1, 2, 1] == tokenize("AaA", vocabulary={"<unk>": 0, "A": 1, "a": 2}).tolist()


def test_unknown_letters_are_tokens_or_errors():
    """The error gives the letter and its place, counted from one."""
    assert [20, 3, 3] == tokenize("M*é").tolist()
    with pytest.raises(DecodeError, match=r"letter '\*' at position 2 is not"):
        tokenize("M*K", unknown="raise")
    with pytest.raises(DecodeError, match="letter 'X' at position 1"):
        tokenize("X", vocabulary={"M": -1}, unknown="raise")
    assert [-1] == tokenize("M", vocabulary={"M": -1}, unknown="raise").tolist()


def test_special_tokens_frame_the_sequence():
    """Also an empty one."""
    assert [0, 20, 15, 2] == tokenize("MK", special=True).tolist()
    assert [0, 2] == tokenize("", special=True).tolist()
    assert [] == tokenize("").tolist()


@pytest.mark.parametrize(
    ("sequence", "special", "expected"),
    [
        ("MK", False, [20, 15, 1, 1]),
        ("MKVLA", False, [20, 15, 7, 4]),
        ("MKVLA", True, [0, 20, 15, 2]),
        ("M", True, [0, 20, 2, 1]),
    ],
)
def test_a_fixed_length_pads_and_cuts(sequence, special, expected):
    """Special tokens are never cut off, so that a model sees both ends of what it is given."""
    assert expected == tokenize(sequence, special=special, length=4).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": "codons"}, "vocabulary is residues, nucleotides or a mapping"),
        ({"vocabulary": {"AB": 1}}, "single ASCII letters"),
        ({"vocabulary": {"A": 1}}, "need <unk> in"),
        ({"vocabulary": {"A": 1, "<unk>": 0}, "length": 3, "special": True}, "need <pad>, <cls>, <eos>"),
        ({"length": 2, "special": True}, "leave room for a letter"),
        ({"unknown": "drop"}, "unknown is 'token' or 'raise'"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    """Before any sample."""
    with pytest.raises(ConfigError, match=message):
        Tokenize(**options)


def test_the_stage_pickles_and_is_lazy():
    """Workers get a copy, and an endless stream is not a problem."""

    def endless():
        while True:
            yield "M"

    stage = pickle.loads(pickle.dumps(Tokenize(field=None, special=True)))

    assert [0, 20, 2] == next(stage(endless())).tolist()


@pytest.mark.parametrize("number", [0.5, True, 2**63, "1"])
def test_vocabularies_of_anything_but_whole_numbers_are_refused(number):
    """Tensors of tokens are int64, which would cut such a number down."""
    with pytest.raises(ConfigError, match="a whole number of 64 bits, not"):
        Tokenize(vocabulary={"A": number, "<unk>": 0})
