"""Names of others on a terminal and in Markdown."""

import pytest
from excise.core.files.escape import markdown, one_line, plain


@pytest.mark.parametrize("bad", ["\x1b[2J", "\x07", "\x9b31m", "\u202e", "\udcff", "\r", "\x7f"])
def test_no_control_reaches_a_terminal(bad: str):
    assert plain(f"a{bad}b") == f"a\N{REPLACEMENT CHARACTER}{bad[1:]}b"
    plain(bad).encode()


def test_lines_and_letters_stay():
    text = "tab\tline\n\N{GREEK SMALL LETTER ALPHA} \N{GRINNING FACE}\xa0"
    assert plain(text) == text
    assert plain("a\r\nb") == "a\nb"
    assert one_line(" a\n b\r\n") == "a b"


def test_markdown_starts_nothing():
    assert markdown("<img src=x onerror=y>") == "\\<img src=x onerror=y>"
    assert markdown("a|b\n# c") == "a\\|b # c"
    assert markdown("![a](http://b) [c][d]") == "![a\\](http://b) [c\\][d]"
    assert markdown("0.3 [0.1, 0.5]") == "0.3 [0.1, 0.5]"
    assert markdown("\\<") == "\\\\\\<"
