"""The report: what it tells, that nothing on it is taken for markup, and that it can be read everywhere."""

import argparse
import dataclasses
import io
import itertools
import math
import pickle
import re
import shutil
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.helpers.convert import convert

from bionemo.webdatamodule._cli.main import main
from bionemo.webdatamodule._cli.report import facts, page
from bionemo.webdatamodule._cli.report.markup import element
from bionemo.webdatamodule._cli.report.parts import Part, parts_of
from bionemo.webdatamodule._cli.report.spread import Spread
from bionemo.webdatamodule._cli.report.survey import evenly
from bionemo.webdatamodule._engine.format.manifest import manifest_path, read_manifest
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes
from bionemo.webdatamodule.components import Sample

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&lt;\u202e"
N = 60


class Proteins:
    """A writer plugin: dictionaries with a tensor of varying length and a label, a class, and sometimes JSON."""

    def __call__(self, names):
        """Yield the samples."""
        for name in names:
            number = int(name[1:])
            tensor = torch.zeros(10 + number % 7, 4)
            if number == 3:
                tensor[0, 0] = math.nan
            files = {
                "protein.pyd": pickle.dumps({"embedding": tensor, "label": number % 3, HOSTILE: None}),
                "cls": str(number % 5).encode(),
            }
            yield Sample(name, {**files, "json": b'{"score": 0.5}'} if number % 2 else files)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Four shards of fifteen proteins each."""
    directory = tmp_path_factory.mktemp("report") / "proteins-train"
    convert(
        reader=Proteins(),
        names={"train": [f"s{number}" for number in range(N)]},
        directories={"train": str(directory)},
        prefix="p",
        n_shards=4,
        key_encoder=encode_dashes,
        executor=Serial(),
    )
    return directory


@pytest.fixture
def shards(written, tmp_path):
    """A copy of the shards that a test may damage."""
    return shutil.copytree(written, tmp_path / "proteins-train")


@pytest.fixture
def report(tmp_path, capsys):
    """Return a function that makes a report and returns its exit code and the page."""

    def make(directory, *words):
        output = tmp_path / "report.html"
        code = main(["report", str(directory), "-o", str(output), *words])
        return code, output.read_text("utf-8")

    return make


class Reader(HTMLParser):
    """Collects the elements, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.attributes, self.words = set(), [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        """Note an element."""
        self.elements.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        """Note text."""
        if self.lasttag != "style":
            self.words.append(data)


def test_the_page_tells_what_is_there(written, report):
    """Samples, shards, fields, shapes, labels, verification and provenance are on it."""
    code, page = report(written)
    text = Reader(page).text

    assert 0 == code
    for expected in (
        "Samples 60 Shards 4",
        "Verified: every byte is as it was written",
        "4 shards of 15 samples",
        "cls integer 60 60 B 1 B 1 B each",
        "json json 30",
        "protein.pyd['embedding'] tensor of float32 10 to 16 \u00d7 4 0 60",
        "protein.pyd['embedding'] holds NaN or infinity in 1 sample",
        "json['score'] float 0.5 30",
        "All were decoded: 60 samples.",
        "Labels",
        "5 values; the most frequent is 1 times as frequent as the rarest",
        "3 values; the most frequent is 1 times as frequent as the rarest",
        "The SHA-256 hashes of 4 shards and of their indexes",
        f"digest {read_manifest(str(written), 'p').digest}",
        "key encoder custom",
    ):
        assert expected in text


def test_labels_are_counted(written, report):
    """Each value of a class stands with its count and share, in order."""
    _, page = report(written)
    text = Reader(page).text
    assert "value samples share 0 12 20.0% 1 12 20.0% 2 12 20.0% 3 12 20.0% 4 12 20.0%" in text
    assert "value samples share 0 20 33.3% 1 20 33.3% 2 20 33.3%" in text


def test_the_plan_of_a_topology_is_shown_when_asked_for(written, report):
    """It is the one that ``webdatamodule plan`` prints; without a global batch there is none."""
    assert "Plan" not in Reader(report(written)[1]).text
    code, page = report(written, "--ranks", "3", "--workers", "2", "--global-batch", "8")
    text = Reader(page).text
    assert 0 == code
    assert "3 ranks with 2 workers each, in global batches of 8 samples. An epoch has 8 steps" in text
    assert "rank batches samples in a batch in the last 0 8 22 3 2 1 8 22 3 2 2 8 16 2 2" in text
    assert "8 is not a multiple of 3 ranks: shares differ by one sample" in text


def test_a_plan_that_cannot_be_done_is_a_finding(written, report):
    """The exit code says so."""
    code, page = report(written, "--ranks", "61", "--global-batch", "64")
    assert 1 == code
    assert "60 samples cannot serve 61 ranks" in Reader(page).text


def test_damage_is_on_the_page(shards, report):
    """What was flipped is named, and the rest is told all the same."""
    path = shards / "p-000001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    code, page = report(shards)
    text = Reader(page).text
    assert 1 == code
    assert "p-000001.tar: it has other bytes than were written" in text
    assert "Labels" in text


def test_missing_shards_leave_what_the_manifest_says(shards, report):
    """Samples, bytes and provenance are known without the data."""
    (shards / "p-000002.tar").unlink()
    code, page = report(shards)
    text = Reader(page).text
    assert 1 == code
    assert "p-000002.tar: it is missing" in text
    assert "Samples 60 Shards 4" in text
    assert "The data were not read:" in text


def test_samples_are_spread_over_all_shards(written, report):
    """Few samples are taken from everywhere, and the page says how many."""
    _, page = report(written, "--sample", "10")
    assert "10 of 60 samples were decoded, spread evenly" in Reader(page).text
    assert "All were decoded: 60 samples." in Reader(report(written, "--sample", "10", "--deep")[1]).text


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(1, 60))
def test_evenly_takes_as_many_as_wanted_wherever_shards_begin(counts, wanted):
    """Together the shards give so many different numbers, each at most one step from the next."""
    total, first, taken = sum(counts), 0, []
    for count in counts:
        taken += [first + row for row in evenly(first, first + count, total, wanted)]
        first += count
    assert min(wanted, total) == len(set(taken)) == len(taken)
    assert sorted(taken) == taken
    steps = np.diff(taken)
    assert not len(steps) or max(steps) - min(steps) <= 1


def test_shards_of_another_tool_are_reported_without_a_manifest(tmp_path, report):
    """There is nothing to verify against, and the page says what makes a manifest."""
    directory = tmp_path / "foreign"
    directory.mkdir()
    with tarfile.open(directory / "wdshards-000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(8):
            member = tarfile.TarInfo(f"{number:05d}.cls")
            member.size = 1
            tar.addfile(member, io.BytesIO(b"%d" % (number % 2)))
    code, page = report(directory)
    text = Reader(page).text
    assert 0 == code
    assert "Not verified" in text
    assert "webdatamodule index" in text
    assert "value samples share 0 4 50.0% 1 4 50.0%" in text


def test_fields_that_cannot_be_decoded_are_named_with_their_keys(tmp_path, report):
    """The first of them with the reason; the exit code says so."""
    directory = tmp_path / "foreign"
    directory.mkdir()
    with tarfile.open(directory / "wdshards-000000.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("a.json", b"{}"), ("<b>b</b>.json", b"{"), ("c.<i>x</i>", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    code, page = report(directory)
    found = Reader(page)
    assert 1 == code
    assert "json: 1 of 2 cannot be decoded" in found.text
    assert "json: <b>b</b>: " in found.text
    assert "i" not in found.elements


def test_pickles_are_read_safely_unless_they_are_trusted(tmp_path, report):
    """A class that is not known is a finding; allowing it by name reads it."""
    directory = tmp_path / "foreign"
    directory.mkdir()
    data = pickle.dumps(argparse.Namespace(a=1))
    with tarfile.open(directory / "wdshards-000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("a.pyd")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    assert 1 == report(directory)[0]
    assert 0 == report(directory, "--allow-pickle", "argparse.Namespace")[0]
    assert 0 == report(directory, "--trusted")[0]


def test_hostile_texts_do_not_become_markup(shards, report):
    """Keys of dictionaries and everything in a manifest may be anything; the page shows them as text."""
    manifest = read_manifest(str(shards), "p")
    told = {"name": HOSTILE, "distribution": HOSTILE, "version": HOSTILE, "options": {HOSTILE: [HOSTILE]}}
    changed = dataclasses.replace(manifest, writer=told, key_encoder=told, versions={HOSTILE: HOSTILE})
    Path(manifest_path(str(shards), "p")).write_text(changed.to_json(), encoding="utf-8")
    moved = shards.with_name("<b onclick=alert(3)>")
    shards.rename(moved)
    code, page = report(moved, "--global-batch", "8")
    found = Reader(page)

    assert 0 == code
    assert "script" not in found.elements
    assert not found.elements & {"img", "b onclick=alert(3)", "link", "iframe", "object"}
    assert [] == [name for name, _ in found.attributes if name.startswith("on")]
    assert 5 <= found.text.count("<script>alert(1)</script>")
    assert "\u202e" not in page
    assert "\\u202e" in page


@given(st.text(), st.text())
def test_text_and_attributes_come_back_from_markup_as_they_are(text, attribute):
    """An HTML parser reads what was given, but for characters that cannot be seen, which are spelt out."""
    found = Reader(element("p", text, title=attribute))
    spelt = [
        "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in given_)
        for given_ in (text, attribute)
    ]
    assert spelt[0] == "".join(found.words)
    assert [("title", spelt[1])] == found.attributes


def test_names_of_files_that_are_no_text_are_shown(shards, report):
    """Half a surrogate pair stands for a byte that is not UTF-8; the page says which."""
    moved = shards.with_name("\udcff-train")
    shards.rename(moved)
    assert "\\udcff-train" in report(moved)[1]


def test_nothing_is_fetched(written, report):
    """No address, no script, no style sheet or picture from elsewhere, and a policy that forbids them."""
    page = report(written)[1]
    assert [] == re.findall(r"https?:|url\(|@import", page)
    assert [] == [name for name, _ in Reader(page).attributes if name in ("src", "srcset", "data", "action")]
    assert "default-src 'none'" in page


def test_the_page_is_accessible(written, report):
    """Language, one main heading, headings in order, captions, scopes, and pictures with words."""
    page = report(written, "--global-batch", "8")[1]
    assert '<html lang="en">' in page
    assert 1 == page.count("<h1>")
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    assert page.count("<table") == page.count("<caption>") > 5
    assert page.count("<svg") == page.count('role="img" aria-label=') + page.count('class="share"')
    assert page.count("<th ") == page.count('scope="row"') + page.count('scope="col"')


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "2"], "which needs --global-batch"),
        (["-o", "/nowhere/at/all.html"], "--output is a file in a directory that is there"),
        (["--prefix", "q"], "and no q-*.tar"),
    ],
)
def test_wrong_words_are_explained(written, capsys, words, message):
    """Before anything is read, in one line."""
    assert 2 == main(["report", str(written), *words])
    assert message in capsys.readouterr().err


def test_large_samples_are_decoded_in_smaller_numbers(written, monkeypatch):
    """However large samples are, about so many bytes are read."""
    monkeypatch.setattr(facts, "MOST_BYTES", sum(path.stat().st_size for path in written.glob("*.tar")) // 6 + 1)
    assert N // 6 == facts.gather(str(written), "p").survey.samples


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200))
@example([0, 40])  # small numbers lie further apart than classes
def test_a_spread_keeps_count(numbers):
    """Its classes hold all numbers between the smallest and the largest, at most so many, without gap or overlap."""
    spread = Spread()
    for start in range(0, len(numbers), 7):
        spread.add(numbers[start : start + 7])
    bins = spread.bins(16)
    assert len(bins) <= 16
    assert len(numbers) == spread.n == sum(count for _, _, count in bins)
    assert (min(numbers), max(numbers), sum(numbers)) == (spread.low, spread.high, spread.total)
    assert (spread.low, spread.high) == (bins[0][0], bins[-1][1])
    assert all(earlier[1] < later[0] for earlier, later in itertools.pairwise(bins))


def test_values_are_taken_apart():
    """Mappings and short tuples have parts; lists and everything else are taken as they are."""
    value = {"a": (1, [2, 3]), "b": {}, 4: {"c": None}}
    expected = [("['a'][0]", 1), ("['a'][1]", [2, 3]), ("['b']", {}), ("[4]['c']", None)]
    assert expected == list(parts_of(value))
    assert [("", 5)] == list(parts_of(5))


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("x.cls", range(1000), True),
        ("x.pyd['label']", [torch.tensor(n) for n in range(5)], True),
        ("x.pyd['species']", ["mouse", "human"] * 5, True),
        ("x.pyd['n']", range(100), False),
        ("x.pyd['n']", [7] * 10, False),
        ("x.pyd['label']", [0.5] * 10, False),
        ("x.pyd['label']", [None, 1], False),
        ("x.cls", range(1002), False),
    ],
)
def test_labels_are_known_by_name_or_by_coming_again(name, values, expected):
    """Whole numbers and short texts, as far as they can be counted."""
    part = Part(name=name)
    for value in values:
        part.add(value)
    assert expected == part.is_label


STYLE = Path(page.__file__).with_name("report.css").read_text("utf-8")
BLOCKS = re.split(r"\n(?=@media)", re.sub(r"/\*.*?\*/", "", STYLE, flags=re.DOTALL))
TEXTS = [("ink", "paper"), ("ink", "card"), ("quiet", "paper"), ("quiet", "card"), ("bar", "paper"), ("bar", "card")]
TEXTS += [(state, f"{state}-soft") for state in ("good", "bad", "note")]


def block(name):
    """Return the part of the style sheet that begins so."""
    (found,) = [text for text in BLOCKS if text.startswith(name)]
    return found


def variables(text):
    """Return the colours that a part of the style sheet sets, by name."""
    return dict(re.findall(r"--([\w-]+): (#\w+);", text))


def luminance(colour):
    """Return the relative luminance of a colour as WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("medium", [":root", "@media (prefers-color-scheme: dark)", "@media print"])
def test_text_stands_out(medium):
    """In light, in the dark and on paper, each pair of colours has the contrast that WCAG AA asks for."""
    colours = {**variables(block(":root")), **variables(block(medium))}
    for text, behind in TEXTS:
        lighter, darker = sorted((luminance(colours[text]), luminance(colours[behind])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, behind)
    assert ("dark" in medium) == (luminance(colours["paper"]) < luminance(colours["ink"]))


def test_every_colour_of_the_page_is_one_of_these():
    """Rules name colours by variables only, and every variable that they name is set."""
    rules = re.sub(r":root \{.*?\}", "", "".join(BLOCKS), flags=re.DOTALL)
    used = set(re.findall(r"var\(--([\w-]+)\)", rules))

    assert [] == re.findall(r"#[0-9a-f]{3,6}\b|rgb|hsl", rules)
    assert used == {*variables(block(":root")), "sans", "mono"}
    assert variables(block("@media (prefers-color-scheme: dark)")).keys() == variables(block(":root")).keys()


def test_text_is_large_enough():
    """No rule for a screen sets letters smaller than 12 pixels."""
    sizes = re.findall(r"font(?:-size)?: (?:clamp\()?([\d.]+)(rem|em)", "".join(BLOCKS[:-1]))

    assert len(sizes) >= 10
    assert all(float(number) * 16 >= 12 for number, _ in sizes)


def test_nothing_is_wider_than_a_phone(written, report):
    """Tables scroll in boxes of their own, drawings stretch, long words break, and grids have no wide column."""
    page = report(written, "--ranks", "3", "--workers", "2", "--global-batch", "8")[1]

    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert 5 < page.count("<table") == page.count('<div class="scroll" role="region"')
    assert page.count("<svg") == page.count('preserveAspectRatio="none"') > 2
    for rule in (
        r"^\.scroll \{\s+overflow-x: auto;",
        r"^svg \{ display: block; width: 100%;",
        r"^body \{[^}]*overflow-wrap: anywhere;",
    ):
        assert re.search(rule, STYLE, re.MULTILINE)
    columns = re.findall(r"minmax\((.*?), 1fr\)", STYLE)
    assert ["8.5rem", "min(100%, 24rem)", "0"] == columns


def test_charts_have_bars_inside_their_drawings(written, report):
    """A bar for each shard and each class of lengths, of positive size, in a colour of the page."""
    page = report(written, "--ranks", "3", "--workers", "2", "--global-batch", "8")[1]
    drawings = re.findall(r'<svg viewBox="0 0 (\d+) (\d+)"[^>]*role="img"[^>]*>(.*?)</svg>', page, re.DOTALL)
    bars = [
        (float(width), float(height), *map(float, bar))
        for width, height, inside in drawings
        for bar in re.findall(r'<rect class="bar" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"/>', inside)
    ]

    assert sum(height > 0 for *_, height in bars) >= 4 + 7
    assert all(
        w > 0 and 0 <= x <= x + w <= width + 0.02 and 0 <= y <= y + h <= height + 0.02
        for width, height, x, y, w, h in bars
    )
    assert ".bar { fill: var(--bar); }" in STYLE


def test_a_page_is_well_formed_and_every_section_has_content(written, report):
    """Each element that is opened is closed in its place, links lead to sections, and no section is blank."""
    page = report(written, "--ranks", "3", "--workers", "2", "--global-batch", "8")[1]
    found = Outline(page)

    assert [] == found.open
    assert found.targets == [f"#{name}" for name in found.sections]
    assert all(len(text) > 60 for text in found.sections.values()), found.sections
    assert not found.names & {"script", "img", "link", "iframe"}


class Outline(HTMLParser):
    """Follows which elements are open, and what the sections hold."""

    def __init__(self, page):
        super().__init__()
        self.open, self.names, self.targets, self.sections = [], set(), [], {}
        self.section = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        """Open an element."""
        given = dict(attrs)
        self.names.add(tag)
        if tag != "meta":
            self.open.append(tag)
        if tag == "section":
            self.section = given["aria-labelledby"]
            self.sections[self.section] = ""
        if tag == "a" and given["href"] != "#main":
            self.targets.append(given["href"])

    def handle_startendtag(self, tag, attrs):
        """Note an element that closes itself."""
        self.names.add(tag)

    def handle_endtag(self, tag):
        """Close the element opened last, which must have that name."""
        assert tag == self.open.pop()
        if tag == "section":
            self.section = None

    def handle_data(self, data):
        """Note text of a section."""
        if self.section is not None:
            self.sections[self.section] += data
