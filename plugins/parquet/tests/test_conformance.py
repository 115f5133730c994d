import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bionemo.webdatamodule import pickles
from bionemo.webdatamodule.testing import WriterConformance

TABLE = pa.table(
    {
        "id": ["first", "second.1", "third", "fourth", "fifth"],
        "value": pa.array([1.5, 2.5, None, 4.5, 5.5], pa.float32()),
        "raw": [b"\x00", b"", b"abc", b"d", b"e" * 1000],
        "vector": pa.array([[1, 2], [], [3], [4], [5, 6, 7]], pa.list_(pa.int16())),
    }
)
FIELDS = [
    {
        "value.pyd": pickles.dumps(None if value is None else np.float32(value)),
        "raw.bin": raw,
        "vector.pyd": pickles.dumps(np.array(vector, np.int16)),
    }
    for value, raw, vector in zip(*(TABLE[name].to_pylist() for name in ("value", "raw", "vector")), strict=True)
]


class TestParquetByKey(WriterConformance):
    """Rows that a column names."""

    name = "parquet"

    @pytest.fixture
    def options(self, tmp_path):
        pq.write_table(TABLE, tmp_path / "table.parquet", row_group_size=2)
        return {"paths": str(tmp_path), "key": "id"}

    @pytest.fixture
    def expected(self):
        return dict(zip(TABLE["id"].to_pylist(), FIELDS, strict=True))


class TestParquetByNumber(WriterConformance):
    """Rows of two files that file and number name."""

    name = "parquet"

    @pytest.fixture
    def options(self, tmp_path):
        pq.write_table(TABLE.slice(0, 3), tmp_path / "one.parquet", row_group_size=2)
        (tmp_path / "more").mkdir()
        pq.write_table(TABLE.slice(3), tmp_path / "more" / "two.parquet")
        return {"paths": str(tmp_path), "columns": ["value", "raw", "vector"]}

    @pytest.fixture
    def expected(self):
        names = ["one/000000000", "one/000000001", "one/000000002", "more/two/000000000", "more/two/000000001"]
        return dict(zip(names, FIELDS, strict=True))


def test_pickles_need_no_package_of_ours():
    """Plain ``pickle.loads`` reads a field, with the type of its column."""
    value = pickle.loads(FIELDS[0]["value.pyd"])

    assert (np.float32, 1.5) == (type(value), value)
