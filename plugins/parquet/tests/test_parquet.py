import datetime as dt
import decimal
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris

from bionemo.webdatamodule.errors import ConfigError, InputError
from bionemo.webdatamodule.testing import run_examples, same
from bionemo_webdatamodule_parquet import ParquetReader, fields

ROOT = Path(__file__).parents[1]


def write(path, columns, **options):
    """Write a table and return its path as a string."""
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def values_of(path, column, kind, given):
    """Return what a column's values are after a round trip through a file, a field and plain pickle."""
    reader = ParquetReader(paths=write(path / "t.parquet", {column: pa.array(given, kind)}, row_group_size=2))
    return [pickle.loads(sample.files[f"{column}.pyd"]) for sample in reader(reader.names())]


def test_readme_does_what_it_says(tmp_path):
    """The example of the README runs and prints what it shows."""
    assert run_examples(ROOT / "README.md", tmp_path) == 1


def test_numbers_keep_their_type(tmp_path):
    """A number is a numpy scalar of the column's type, and a null is None."""
    assert same([np.float32(1), None, np.float32(-0.0)], values_of(tmp_path, "x", pa.float32(), [1, None, -0.0]))
    assert same([np.int64(2**62 + 1), None], values_of(tmp_path, "x", pa.int64(), [2**62 + 1, None]))
    assert same([np.uint8(255)], values_of(tmp_path, "x", pa.uint8(), [255]))
    assert same([np.True_, None, np.False_], values_of(tmp_path, "x", pa.bool_(), [True, None, False]))


def test_lists_of_numbers_are_arrays(tmp_path):
    """A list of numbers is an array of its element type, whatever its length."""
    found = values_of(tmp_path, "x", pa.list_(pa.int16()), [[1, 2, 3], [], None, [4]])

    assert same([np.array([1, 2, 3], np.int16), np.array([], np.int16), None, np.array([4], np.int16)], found)


def test_fixed_size_lists_are_arrays_of_more_dimensions(tmp_path):
    """Nested lists of fixed sizes have a shape; a null row leaves the others as they are."""
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    kind = pa.list_(pa.list_(pa.float32(), 3), 2)

    assert same([matrix, matrix + 1], values_of(tmp_path, "x", kind, [matrix.tolist(), (matrix + 1).tolist()]))
    assert same([matrix, None, matrix], values_of(tmp_path, "x", kind, [matrix.tolist(), None, matrix.tolist()]))


def test_tensors_are_arrays(tmp_path):
    """Arrow's tensors of a fixed shape come as arrays of that shape."""
    tensors = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(tensors)
    reader = ParquetReader(paths=write(tmp_path / "t.parquet", {"x": column}))

    found = [pickle.loads(sample.files["x.pyd"]) for sample in reader(reader.names())]
    nulls = fields.values(pa.concat_arrays([column[:1], pa.nulls(1, column.type), column[1:]]))

    assert same(list(tensors), found)
    assert same([tensors[0], None, tensors[1]], nulls)


def test_ragged_lists_and_structs_are_lists_and_dicts(tmp_path):
    """Where no array fits, lists hold arrays and structs are dicts, all the way down."""
    ragged = values_of(tmp_path, "x", pa.list_(pa.list_(pa.int32())), [[[1, 2], []], None, [], [[3]]])
    kind = pa.struct({"n": pa.int8(), "s": pa.string(), "v": pa.list_(pa.float64())})
    structs = values_of(tmp_path, "x", kind, [{"n": 1, "s": "a", "v": [0.5]}, None, {"n": None, "s": None, "v": []}])

    assert same([[np.array([1, 2], np.int32), np.array([], np.int32)], None, [], [np.array([3], np.int32)]], ragged)
    assert same(
        [
            {"n": np.int8(1), "s": "a", "v": np.array([0.5])},
            None,
            {"n": None, "s": None, "v": np.array([], np.float64)},
        ],
        structs,
    )


def test_times_decimals_and_categories(tmp_path):
    """Times keep their unit, decimals stay exact, categories are their text."""
    noon = dt.datetime(2026, 7, 1, 12, tzinfo=dt.timezone.utc)

    assert same(
        [np.datetime64("2026-07-01T12:00:00", "us")], values_of(tmp_path, "x", pa.timestamp("us", "UTC"), [noon])
    )
    assert same([np.datetime64("2026-07-01", "D"), None], values_of(tmp_path, "x", pa.date32(), [noon.date(), None]))
    assert [decimal.Decimal("0.10")] == values_of(tmp_path, "x", pa.decimal128(5, 2), [decimal.Decimal("0.1")])
    text = pa.array(["u", "v", "u"]).dictionary_encode()
    reader = ParquetReader(paths=write(tmp_path / "c.parquet", {"x": text}, row_group_size=1))
    assert [b"u", b"v", b"u"] == [sample.files["x.txt"] for sample in reader(reader.names())]


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.none() | st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), min_size=1, max_size=30))
def test_any_lists_survive(rows):
    """Lists of any lengths, with null rows anywhere, and in any slice, come back."""
    column = pa.array([[9], *rows, None], pa.list_(pa.int32())).slice(1, len(rows))

    expected = [None if row is None else np.array(row, np.int32) for row in rows]

    assert same(expected, list(fields.values(column)))


def test_null_inside_a_list_of_numbers_is_an_error(tmp_path):
    """An array cannot hold it, and NaN or 0 would be another value."""
    with pytest.raises(InputError, match=r"column 'x' has a null inside a list of numbers.*fill the nulls first"):
        values_of(tmp_path, "x", pa.list_(pa.int32()), [[1, None]])


def test_columns_can_be_chosen_and_get_suffixes(tmp_path):
    """A mapping names suffixes; without one, names are put in lower case and dots become underscores."""
    path = write(tmp_path / "t.parquet", {"Flower ID": ["a"], "petal.width": [0.5], "Photo": [b"jpg"], "cls": [7]})

    (chosen,) = ParquetReader(paths=path, columns={"Photo": "jpg", "cls": "cls"})(["t/000000000"])
    (everything,) = ParquetReader(paths=path)(["t/000000000"])

    assert {"jpg": b"jpg", "cls": b"7"} == chosen.files
    assert ["flower_id.txt", "petal_width.pyd", "photo.bin", "cls.pyd"] == list(everything.files)


def test_wrong_columns_and_suffixes_are_errors(tmp_path):
    """The message says which column, and what there is."""
    path = write(tmp_path / "t.parquet", {"a.b": [1], "a_b": [2], "text": ["x"]})

    with pytest.raises(ConfigError, match=r"no column 'c'.*the columns are a\.b, a_b, text"):
        list(ParquetReader(paths=path, columns=["c"])(["t/000000000"]))
    with pytest.raises(ConfigError, match=r"columns 'a\.b' and 'a_b' both get the suffix 'a_b\.pyd'"):
        list(ParquetReader(paths=path)(["t/000000000"]))
    with pytest.raises(InputError, match=r"column 'text' holds str.*'x\.cls'.*no whole number.*'text\.pyd'"):
        list(ParquetReader(paths=path, columns={"text": "x.cls"})(["t/000000000"]))
    with pytest.raises(ConfigError, match="no key column 'id'"):
        ParquetReader(paths=path, key="id").names()
    with pytest.raises(ConfigError, match="paths is a path"):
        ParquetReader(paths=[])
    with pytest.raises(ConfigError, match="columns is a list of names"):
        ParquetReader(paths=path, columns="text")


def test_keys_must_be_unique_and_present(tmp_path):
    """A key twice, a null key and a key that is no name are errors, when listed and when read."""
    twice = write(tmp_path / "twice.parquet", {"id": ["a", "b", "a"], "x": [1, 2, 3]}, row_group_size=2)
    null = write(tmp_path / "null.parquet", {"id": ["a", None], "x": [1, 2]})
    real = write(tmp_path / "real.parquet", {"id": [0.5], "x": [1]})

    with pytest.raises(InputError, match=r"'a' of row 0 of row group 1 .*taken already, by row 0 of row group 0"):
        ParquetReader(paths=twice, key="id").names()
    with pytest.raises(InputError, match="'a' names more than one row"):
        list(ParquetReader(paths=twice, key="id")(["a"]))
    with pytest.raises(InputError, match="has a null in row group 0"):
        ParquetReader(paths=null, key="id").names()
    with pytest.raises(ConfigError, match="holds double; it must hold strings or integers"):
        ParquetReader(paths=real, key="id").names()


def test_integers_and_categories_can_be_keys(tmp_path):
    """A number names its row by its digits."""
    path = write(
        tmp_path / "t.parquet", {"id": [30, -1], "tag": pa.array(["p", "q"]).dictionary_encode(), "x": [b"a", b"b"]}
    )

    assert ["30", "-1"] == ParquetReader(paths=path, key="id").names()
    assert [b"b"] == [s.files["x.bin"] for s in ParquetReader(paths=path, key="id")(["-1"])]
    assert [b"b"] == [s.files["x.bin"] for s in ParquetReader(paths=path, key="tag")(["q"])]


def test_files_directories_globs_and_lists(tmp_path):
    """Rows are named after their file below what was asked for, in sorted order."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    one = write(tmp_path / "one.parquet", {"x": [1]})
    write(tmp_path / "deep" / "two.parquet", {"x": [2]})
    write(tmp_path / "deep" / "er" / "three.parquet", {"x": [3]})
    (tmp_path / "deep" / "_SUCCESS").write_text("")

    def names(paths):
        return list(ParquetReader(paths=paths).names())

    assert ["one/000000000"] == names(one)
    assert ["deep/er/three/000000000", "deep/two/000000000", "one/000000000"] == names(str(tmp_path))
    assert ["deep/two/000000000"] == names(f"{tmp_path}/*/two.parquet")
    assert ["one/000000000", "two/000000000"] == names([one, f"{tmp_path}/deep/t*.parquet"])
    with pytest.raises(InputError, match="would both name their rows 'one'"):
        names([one, one])
    with pytest.raises(InputError, match=r"no Parquet file, no directory with any, and no glob of any"):
        names(f"{tmp_path}/none-*.parquet")


def test_file_system_urls(tmp_path):
    """Any file system that fsspec knows will do."""
    path = write(tmp_path / "t.parquet", {"id": ["a", "b"], "x": [1, 2]})
    fsspec.filesystem("memory").pipe("/tables/t.parquet", Path(path).read_bytes())
    reader = ParquetReader(paths="memory://tables", key="id")

    local = list(ParquetReader(paths=path, key="id")(["b", "a"]))

    assert local == list(reader(["b", "a"]))
    assert reader.fingerprints(["a"]) == reader.fingerprints(["a"]) != [""]


def test_row_groups_are_read_once_and_only_as_needed(tmp_path, monkeypatch):
    """A task opens each row group that it needs once, whatever the order of its names, and no other."""
    reader = ParquetReader(paths=write(tmp_path / "t.parquet", {"x": list(range(100))}, row_group_size=10))
    groups = []
    read_rows = fields.read_rows
    monkeypatch.setattr(fields, "read_rows", lambda *args, **more: groups.append(args[1]) or read_rows(*args, **more))
    wanted = [f"t/{row:09d}" for row in (99, 0, 55, 1, 98, 5, 50)]

    found = [pickle.loads(sample.files["x.pyd"]) for sample in reader(wanted)]

    assert [99, 0, 55, 1, 98, 5, 50] == found
    assert [9, 0, 5] == groups


def test_a_change_of_the_file_shows(tmp_path):
    """The fingerprint of a row changes with its file, so conversion reads it again."""
    path = write(tmp_path / "t.parquet", {"x": [1]})
    before = ParquetReader(paths=path).fingerprints(["t/000000000"])

    write(tmp_path / "t.parquet", {"x": [1, 2, 3]})

    assert before != ParquetReader(paths=path).fingerprints(["t/000000000"])


def test_damaged_files_are_named(tmp_path):
    """No Parquet file, and one whose pages were changed, are errors with the file's name."""
    (tmp_path / "no.parquet").write_bytes(b"PAR1 but no more")
    path = tmp_path / "t.parquet"
    write(path, {"x": list(range(10_000))}, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(InputError, match=r"no readable Parquet file.*file=.*no\.parquet"):
        ParquetReader(paths=str(tmp_path / "no.parquet")).names()
    with pytest.raises(InputError, match=r"row group 0 cannot be read.*file=.*t\.parquet"):
        list(ParquetReader(paths=str(path))(["t/000000000"]))


def test_iris_measures_survive(tmp_path):
    """A real table with float64 measures and classes comes back value for value."""
    iris = load_iris(as_frame=True).frame
    path = write(tmp_path / "iris.parquet", {name: iris[name].to_numpy() for name in iris.columns}, row_group_size=40)
    reader = ParquetReader(paths=path)

    rows = list(reader(reader.names()))

    assert 150 == len(rows)
    assert "sepal_length_cm_.pyd" == next(iter(rows[0].files))
    lengths = [pickle.loads(row.files["sepal_length_cm_.pyd"]) for row in rows]
    assert iris["sepal length (cm)"].tolist() == lengths
