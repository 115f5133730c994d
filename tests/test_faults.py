"""The table of faults and the page on operation agree with the tests and the errors that they name."""

import re
from pathlib import Path

import pytest

from bionemo.webdatamodule import errors

ROOT = Path(__file__).parents[1]
FAULTS = (ROOT / "docs/reference/faults.md").read_text()
ROWS = [row for row in FAULTS.splitlines() if "::" in row]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rpartition("::")[2].split("`")[0])
def test_each_fault_names_a_test_and_an_error(row):
    """The test exists, and the error is a public one."""
    _, _, error, _, test = (cell.strip() for cell in row.strip("| ").split(" | "))
    path, _, name = test.strip("`").partition("::")

    assert f"\ndef {name}(" in (ROOT / path).read_text()
    assert issubclass(getattr(errors, re.match(r"`(\w+)`", error)[1]), Exception)


def test_every_code_has_a_row_in_the_page_on_operation():
    """What to do is said for each code that a message can end with."""
    page = (ROOT / "docs/how-to/operate.md").read_text()
    said = {
        code for row in re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE) for code in re.findall(r"`([\w-]+)`", row)
    }
    codes = {found.code for found in vars(errors).values() if isinstance(found, type) and hasattr(found, "code")}

    assert codes - {errors.WebDataModuleError.code, errors.ShardError.code} == said
