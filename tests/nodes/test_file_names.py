"""Names of files that nodes save, without a ComfyUI: the module needs nothing of it."""

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location(
    "file_names", Path(__file__).resolve().parents[2] / "nodes/file_names.py"
)
assert _spec is not None and _spec.loader is not None
file_names = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(file_names)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cat", "cat"),
        (" pets/cat ", "pets/cat"),
        ("pets\\cat", "pets/cat"),
        ("ネコ" * 30, "ネコ" * 30),
    ],
)
def test_a_name_in_the_folder(name: str, found: str):
    assert file_names.checked_name(name) == found


@pytest.mark.parametrize("name", ["", " ", ".", "..", "/abs", "a/../b", "a\nb", "a:b", "\ud800"])
def test_a_name_that_leads_elsewhere_or_that_no_system_takes(name: str):
    with pytest.raises(ValueError, match="is not a name for a file; give one such as cat"):
        file_names.checked_name(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 300, r"has 300 characters \(300 bytes\), and 200 bytes are the most"),
        ("ネ" * 100, r"has 100 characters \(300 bytes\), and 200 bytes are the most"),
        ("pets/" + "x" * 201, r"has 201 characters"),
        ("a/" * 2000 + "b", r"has 4001 characters \(4001 bytes\), and 1000 bytes are the most"),
    ],
)
def test_a_name_that_is_too_long(name: str, words: str):
    with pytest.raises(ValueError, match=words) as error:
        file_names.checked_name(name)
    assert len(str(error.value)) < 200
