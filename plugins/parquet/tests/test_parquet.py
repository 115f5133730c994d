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
from bionemo.webdatamodule.testing import same
from bionemo_webdatamodule_parquet import ParquetReader, fields


def write(path, columns, **options):
    """Write a table and return its path as a string."""
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def values_of(path, column, kind, given):
    """Return what a column's values are after a round trip through a file, a field and plain pickle."""
    reader = ParquetReader(paths=write(path / "t.parquet", {column: pa.array(given, kind)}, row_group_size=2))
    return [pickle.loads(sample.files[f"{column}.pyd"]) for sample in reader(reader.names())]


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
    with pytest.raises(InputError, match=r"column 'text' holds str.*'x\.cls'.*not a whole number.*'text\.pyd'"):
        list(ParquetReader(paths=path, columns={"text": "x.cls"})(["t/000000000"]))
    with pytest.raises(ConfigError, match="no key column 'id'"):
        ParquetReader(paths=path, key="id").names()
    with pytest.raises(ConfigError, match="paths is a path"):
        ParquetReader(paths=[])
    with pytest.raises(ConfigError, match="columns is a list of names"):
        ParquetReader(paths=path, columns="text")


def test_keys_must_be_unique_and_present(tmp_path):
    """A key twice, a null key and a key that is not a name are errors, when listed and when read."""
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
    with pytest.raises(InputError, match=r"not a Parquet file, no directory with any, and no glob of any"):
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

    with pytest.raises(InputError, match=r"not a readable Parquet file.*file=.*no\.parquet"):
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


def table(root, name, **columns):
    """Write a table of a data set of several files."""
    (root / "set").mkdir(exist_ok=True)
    write(root / "set" / name, columns)
    return str(root / "set")


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (pa.array([2**62]), pa.array([0.5]), r"'x': int64 in .*a\.parquet, double in .*cast=\{'x': 'float64'\}"),
        (pa.array([1], pa.int32()), pa.array([1]), r"int32 in .*a\.parquet, int64 in .*cast=\{'x': 'int64'\}"),
        (pa.array([1]), pa.array(["1"]), r"int64 in .*, text in .*cast=\{'x': 'string'\}"),
        (pa.array([[1]]), pa.array([[0.5]]), r"list<int64> in .*, list<double> in"),
        (pa.array([{"a": 1}]), pa.array([{"b": 1}]), r"struct<a: int64> in .*, struct<b: int64> in"),
        (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("ns")), r"timestamp\[us\] in"),
    ],
)
def test_columns_whose_types_differ_between_files_are_listed(tmp_path, one, other, message):
    """Before anything is written, with the files, and with a type that fits all of them where there is one."""
    table(tmp_path, "a.parquet", x=one)
    reader = ParquetReader(paths=table(tmp_path, "b.parquet", x=other))

    with pytest.raises(InputError, match=message):
        reader.names()
    with pytest.raises(InputError, match=message):
        reader.fingerprints(["a/000000000", "b/000000000"])
    assert [""] != reader.fingerprints(["a/000000000"])


def test_columns_missing_in_a_file_are_listed_and_can_be_left_out(tmp_path):
    """Every column that differs is in the message, whose advice works."""
    table(tmp_path, "a.parquet", x=[1], y=[1])
    path = table(tmp_path, "b.parquet", x=[2], z=[1])

    with pytest.raises(InputError, match=r"(?s)'y': int64 in .*a\.parquet, missing in .*b\.parquet;.*'z': missing in"):
        ParquetReader(paths=path).names()
    assert ["a/000000000", "b/000000000"] == ParquetReader(paths=path, columns=["x"]).names()


@pytest.mark.parametrize(
    ("one", "other", "wanted", "expected"),
    [
        ([1], [0.5], "float64", [np.float64(1), np.float64(0.5)]),
        (pa.array([1], pa.int32()), [2**40], "int64", [np.int64(1), np.int64(2**40)]),
        ([[1, 2]], [[0.5]], "float64", [np.array([1.0, 2.0]), np.array([0.5])]),
        (pa.array([0.25]), pa.array([np.nan]), "float32", [np.float32(0.25), np.float32(np.nan)]),
    ],
)
def test_columns_are_cast_where_asked(tmp_path, one, other, wanted, expected):
    """The advice of the message works, and no value changes."""
    table(tmp_path, "a.parquet", x=one)
    reader = ParquetReader(paths=table(tmp_path, "b.parquet", x=other), cast={"x": wanted})

    assert same(expected, [pickle.loads(sample.files["x.pyd"]) for sample in reader(reader.names())])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([2**53 + 1], "float64"),
        ([2**40], "int32"),
        ([1 / 3], "float32"),
        ([16777217], "float32"),
        ([0.5], "int64"),
        ([[1 / 3]], "float32"),
        (["many"], "int64"),
    ],
)
def test_casts_that_would_change_a_value_are_errors(tmp_path, values, wanted):
    """A number that the wanted type cannot hold is never rounded."""
    reader = ParquetReader(paths=write(tmp_path / "t.parquet", {"x": values}), cast={"x": wanted})

    with pytest.raises(InputError, match=r"column 'x' cannot be cast from .*file=.*t\.parquet"):
        list(reader(reader.names()))


def test_wrong_casts_are_errors(tmp_path):
    """Before anything is read where that is possible."""
    path = write(tmp_path / "t.parquet", {"x": [1]})

    with pytest.raises(ConfigError, match=r"'number'\} names no type; give one such as"):
        ParquetReader(paths=path, cast={"x": "number"}).names()
    with pytest.raises(ConfigError, match="cast names the column 'y', which columns does not"):
        ParquetReader(paths=path, columns=["x"], cast={"y": "int64"})
    with pytest.raises(ConfigError, match="cast is a mapping"):
        ParquetReader(paths=path, cast="int64")


@pytest.mark.parametrize(
    ("empty", "full", "suffix", "expected"),
    [
        (pa.nulls(1), pa.array([7]), "x.pyd", [None, np.int64(7)]),
        (pa.array([[]], pa.list_(pa.null())), pa.array([[7]]), "x.pyd", [np.array([], np.int64), np.array([7])]),
        (pa.array([{"a": None}]), pa.array([{"a": "b"}]), "x.pyd", [{"a": None}, {"a": "b"}]),
    ],
)
def test_columns_without_a_value_take_the_type_of_the_other_files(tmp_path, empty, full, suffix, expected):
    """The engines that write tables give such columns the type null."""
    table(tmp_path, "a.parquet", x=empty)
    reader = ParquetReader(paths=table(tmp_path, "b.parquet", x=full))

    assert same(expected, [pickle.loads(sample.files[suffix]) for sample in reader(reader.names())])


def test_null_text_is_an_error_that_names_the_row(tmp_path):
    """Also where the whole column is null in this file, so that the suffix comes from another one."""
    table(tmp_path, "a.parquet", x=pa.nulls(1))
    path = table(tmp_path, "b.parquet", x=["text"])

    with pytest.raises(InputError, match=r"'x' holds NoneType here.*the suffix 'x\.pyd'"):
        list(ParquetReader(paths=path)(["a/000000000"]))
    as_pickles = ParquetReader(paths=path, columns={"x": "x.pyd"})
    assert [None, "text"] == [pickle.loads(s.files["x.pyd"]) for s in as_pickles(as_pickles.names())]


def test_text_is_text_however_it_is_encoded(tmp_path):
    """Dictionaries, large and plain strings of several files are one column; so are times in several zones."""
    table(tmp_path, "a.parquet", x=pa.array(["u"], pa.large_string()), t=pa.array([1], pa.timestamp("us", "UTC")))
    table(
        tmp_path, "b.parquet", x=pa.array(["v"]).dictionary_encode(), t=pa.array([2], pa.timestamp("us", "Asia/Tokyo"))
    )
    reader = ParquetReader(paths=table(tmp_path, "c.parquet", x=["w"], t=pa.array([3], pa.timestamp("us", "UTC"))))

    assert [b"u", b"v", b"w"] == [sample.files["x.txt"] for sample in reader(reader.names())]
    assert [1, 2, 3] == [int(pickle.loads(s.files["t.pyd"]).astype("int64")) for s in reader(reader.names())]


@pytest.mark.parametrize("system", ["local", "memory"])
def test_what_engines_keep_beside_tables_is_left_out(tmp_path, caplog, system):
    """``_temporary`` folders and hidden files hold no rows; linked folders do."""
    for place in ("day=1/part.parquet", "day=1/.part.parquet.crc.parquet", "_temporary/0/part.parquet", "B.PARQUET"):
        (tmp_path / "set" / place).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "set" / place, {"x": [1]})
    (tmp_path / "set" / "_SUCCESS").touch()
    root = str(tmp_path / "set")
    if system == "memory":
        root = f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").put(str(tmp_path / "set"), root, recursive=True)
    else:
        (tmp_path / "elsewhere").mkdir()
        write(tmp_path / "elsewhere" / "c.pq", {"x": [1]})
        (tmp_path / "set" / "day=2").symlink_to(tmp_path / "elsewhere")

    found = list(ParquetReader(paths=root).names())

    linked = ["day=2/c/000000000"] if system == "local" else []
    assert ["B/000000000", "day=1/part/000000000", *linked] == found
    assert "left out" in caplog.text
    assert ["day=1/part/000000000", *linked] == list(ParquetReader(paths=f"{root}/day=*").names())
    assert ["day=1/part/000000000"] == list(ParquetReader(paths=f"{root}/*/*.parquet").names())
    assert ["0/part/000000000"] == list(ParquetReader(paths=f"{root}/_temporary/*/*.parquet").names())


def test_images_of_hugging_face_are_their_bytes(tmp_path):
    """A struct of bytes and path is the file; under a pickled suffix it stays a dictionary."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    path = write(tmp_path / "t.parquet", {"image": pa.array([{"bytes": b"png", "path": "a.png"}], kind)})
    paths = write(tmp_path / "p.parquet", {"image": pa.array([{"bytes": None, "path": "a.png"}], kind)})

    assert [{"image.bin": b"png"}] == [sample.files for sample in ParquetReader(paths=path)(["t/000000000"])]
    assert [{"png": b"png"}] == [s.files for s in ParquetReader(paths=path, columns={"image": "png"})(["t/000000000"])]
    [pickled] = ParquetReader(paths=path, columns={"image": "i.pyd"})(["t/000000000"])
    assert {"bytes": b"png", "path": "a.png"} == pickle.loads(pickled.files["i.pyd"])
    with pytest.raises(InputError, match="column 'image' holds paths without bytes in 1 row;"):
        list(ParquetReader(paths=paths)(["p/000000000"]))
