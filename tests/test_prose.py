"""The wording of documentation, docstrings, comments, messages and names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATTERNS = ("*.md", "docs/**/*.md", "docs/*.py", "plugins/*/*.md", "plugins/*/src/**/*.py", "src/**/*.py")
BANNED = re.compile(
    r"(?<![a-z~.])(?<!there )(told|tells?(?!\()|mend(s|ed|ing)?|whoever|nobody|somebody|everybody|anew|for ever|"
    r"how-manieth|hands? back|nobody means|(is|are|be) had|afresh|be it|want of|plays? no part|as it was given|"
    r"is no (constant|digest|directory|hook|JSON|key|mapping|name|number|path|stage|string|suffix|tar|text|tuple)"
    r")(?![a-z])",
    re.IGNORECASE,
)


def _findings(text):
    return [(number, match[0]) for number, line in enumerate(text.splitlines(), 1) for match in BANNED.finditer(line)]


def test_the_words_of_the_style_guide_are_found_in_prose_and_in_names():
    """Each line is reported with the word; a file's ``tell()`` and a user of the system are not prose."""
    text = "Mend it.\n_told = stream.tell()\nos.path.expanduser('~nobody')\nThe value is had by it, and amended.\n"
    text += "There is no path.\nIt is no path.\n"
    assert _findings(text) == [(1, "Mend"), (2, "told"), (4, "is had"), (6, "is no path")]


def test_documentation_and_source_are_plain_technical_english():
    """No page and no module has one of the banned words."""
    paths = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word}"
        for path in paths
        for number, word in _findings(path.read_text(encoding="utf-8"))
    ]
    assert found == []
