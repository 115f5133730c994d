from bionemo_webdatamodule_example import LineReader


def test_empty_lines_are_samples_and_unusual_line_breaks_are_text(tmp_path):
    """Only a newline ends a line, and a line with nothing in it counts."""
    (tmp_path / "text").write_text("one\n\nthree\u2028still three\n", encoding="utf-8")

    reader = LineReader(path=str(tmp_path / "text"))

    assert [b"one", b"", "three\u2028still three".encode()] == [s.files["txt"] for s in reader(reader.names())]
