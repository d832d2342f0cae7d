"""Gates as JUnit XML: parsed again, with counts that are right and names that are hostile."""

from xml.etree import ElementTree

import pytest
from excise.eval.gate import Check, Gate, junit


CHECKS = (
    Check("edited", "pass", "its weights differ"),
    Check("a.max", "fail", "mean 12.00; 10 at 95 %, broken"),
    Check("b.max", "inconclusive", "not shown"),
    Check("c.max", "error", "60 samples are too few"),
    Check("d.max", "fail", "<b>&\"'"),
)


def test_counts_and_details():
    text = junit([Gate("one", CHECKS), Gate("two", CHECKS[:1])])
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites')
    first, second = ElementTree.fromstring(text)
    assert first.attrib == {"name": "one", "tests": "5", "failures": "3", "errors": "1"}
    assert second.attrib == {"name": "two", "tests": "1", "failures": "0", "errors": "0"}
    assert [case.get("name") for case in first] == [check.name for check in CHECKS]
    assert {case.get("classname") for case in first} == {"one"}
    for case, check, tag in zip(
        first, CHECKS, (None, "failure", "failure", "error", "failure"), strict=True
    ):
        assert [child.tag for child in case] == ([tag] if tag else [])
        for child in case:
            assert child.text == child.get("message") == check.detail
            assert child.get("type") == check.status


def test_no_gates():
    assert len(ElementTree.fromstring(junit([]))) == 0


@pytest.mark.parametrize(
    "name",
    ["<x>", "a&b", "\"'", "]]>", "<!--", "ñ 日本 😀", " a  b ", "C:\\models\\x", "a\nb\tc",
     "\x00\x1b[31m", "\x7f\x85", "\ud800", "\ufffe\uffff", "&#0;"],
    ids=ascii,
)  # fmt: skip
def test_hostile_names(name: str):
    text = junit([Gate(name, (Check(name, "error", name),))])
    parsed = ElementTree.fromstring(text.encode("utf-8"))  # as a file of it
    (suite,) = parsed
    ((failed,),) = suite
    for found in (suite.get("name"), suite[0].get("name"), suite[0].get("classname"), failed.text):
        assert found is not None
        assert len(found) == len(name)
        # a character that XML has no way to write is replaced, every other one kept
        changed = [(a, b) for a, b in zip(name, found, strict=True) if a != b]
        assert all(a in "\x00\x1b\ud800\ufffe\uffff" and b == "\ufffd" for a, b in changed)
