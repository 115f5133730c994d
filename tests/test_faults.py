"""The table of faults and the page on operation agree with the tests and the errors that they name."""

import re
from pathlib import Path

import pytest

from bionemo.webdatamodule import errors

ROOT = Path(__file__).parents[1]
FAULTS = (ROOT / "docs/reference/faults.md").read_text()
ROWS = [[cell.strip() for cell in row.strip("|").split("|")] for row in FAULTS.splitlines() if "::" in row]
N_FAULTS = 96  # of the matrix


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_each_fault_names_a_test_and_what_is_seen(row):
    """The test exists, and the error, if there is one, is a public one."""
    *_, seen, _, test = row
    path, _, name = test.strip("`").partition("::")

    assert f"\ndef {name}(" in (ROOT / path).read_text()
    if named := re.match(r"`(\w+)`", seen):
        assert issubclass(getattr(errors, named[1]), Exception)
    else:
        assert seen.startswith(("works", "the exception itself", "no message"))


def test_every_fault_of_the_matrix_has_a_row():
    """Their numbers are those that tests name in brackets."""
    assert {*range(1, N_FAULTS + 1)} == {int(number) for row in ROWS for number in re.findall(r"\d+", row[0])}


def test_every_code_has_a_row_in_the_page_on_operation():
    """What to do is said for each code that a message can end with."""
    page = (ROOT / "docs/how-to/operate.md").read_text()
    said = {
        code for row in re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE) for code in re.findall(r"`([\w-]+)`", row)
    }
    codes = {found.code for found in vars(errors).values() if isinstance(found, type) and hasattr(found, "code")}

    assert codes - {errors.WebDataModuleError.code, errors.ShardError.code} == said
