"""JSON lines that say something else than they should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pbe_model import untrusted
from pbe_model.untrusted import numbered_lines
from training.data.index import BoxIndex
from training.evaluation.pairs import load_pairs
from training.runlog import RunLog

from .files import (
    DEEP,
    HUGE,
    NESTED,
    TERMINAL,
    everything,
    passed_over,
    picture,
    pipe,
    put,
    sentence,
)

BAD_LINES = [
    DEEP,
    '{"image": "a.png", "box": ' + NESTED + "}",
    '{"image": "a.png", "box": [0, 0, 1, ' + HUGE + "]}",
    '{"image": "a.png", "box": [0, 0, 1, ' + "1" * 5000 + "]}",
    '{"image": "a.png", "box": {"0": 0, "1": 1, "2": 2, "3": 3}}',
    '{"image": "a.png", "box": "1234"}',
    '{"image": "a.png", "box": [[0], 0, 9, 9]}',
    '{"image": ["a.png"], "box": [0, 0, 9, 9]}',
    '{"image": {"a": 1}, "box": [0, 0, 9, 9]}',
    '{"image": 7, "box": [0, 0, 9, 9]}',
    '{"image": "a.png", "box": [0, 0, 9, 9], "label": ' + NESTED + "}",
    '{"image": "a.png", "box": [0, 0, 9, 9], "label": {"a": 1}}',
    '{"image": "a.png", "box": [0, 0, 9, 9], "size": "99"}',
    '{"image": "a.png", "box": [0, 0, 9, 9], "size": ["w", "h"]}',
    '{"image": "a.png", "box": [0, 0, 9, 9], "size": {"0": 1}}',
    '{"image": "a.png", "box": [0, 0, 9, 9], "size": [9, ' + HUGE + "]}",
    '[["image", "a.png"]]',
    '"image"',
    "7",
    "null",
    TERMINAL.strip() + "{",
]


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines_of_boxes(line: str, images: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "boxes.jsonl", f"\n{line}\n")
    sentence(lambda: BoxIndex.open(path, images), "^line 2 of .*is no box entry")
    (reported,) = passed_over("boxes", images, path)
    assert reported.startswith("boxes.jsonl, line 2: not {")


@pytest.mark.parametrize(
    "entry",
    [
        '"box": [0, 0, 1e999, 9]',
        '"box": [0, 0, NaN, 9]',
        '"box": [0, 0, 9, 9], "size": [NaN, 9]',
        '"box": [0, 0, 9, 9], "size": [1e999, 9]',
        '"box": [0, 0, 9, 9], "size": [-5, 9]',
        '"box": [0, 0, 9, 9], "size": [70000, 9]',
    ],
)
def test_numbers_that_no_index_holds(entry: str, images: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "boxes.jsonl", '{"image": "a.png", ' + entry + "}")
    sentence(lambda: BoxIndex.open(path, images, min_area=0, max_area=1), "no(t in| box)")


def test_a_name_that_no_file_has(images: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "boxes.jsonl", '{"image": "\\ud800", "box": [0, 0, 9, 9]}')
    sentence(lambda: BoxIndex.open(path, images), "line 1 of")


def test_numbers_are_kept_as_floats_by_the_filter_and_cut_by_the_index(
    images: Path, tmp_path: Path
) -> None:
    text = '{"image": "gone.png", "box": [0, -1e300, "9.5", 1e300], "label": "\\ud800"}'
    path = put(tmp_path / "boxes.jsonl", text)
    index = BoxIndex.open(path, images)
    assert index.box(0) == (0, 0, 9, 2**16 - 1) and index.photo(0).size is None
    assert everything("boxes", images, path)[0].boxes[0][:4] == (0, -1e300, 9.5, 1e300)


def test_lines_are_read_in_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = put(tmp_path / "lines.txt", b"\xef\xbb\xbfa\r\n\r\nb\rc\n")
    assert list(numbered_lines(text)) == [(1, "a"), (3, "b"), (4, "c")]
    for encoding in ("utf-16-le", "utf-16-be"):
        wide = put(tmp_path / encoding, "\ufeffa\r\n\r\nb\n".encode(encoding))
        assert list(numbered_lines(wide)) == [(1, "a"), (3, "b")]
    with pytest.raises(ValueError, match="has 12 bytes, and 10 are the most"):
        list(numbered_lines(text, 10))
    monkeypatch.setattr(untrusted, "MAX_LINE", 8)
    long = put(tmp_path / "long.txt", "fine\n" + 20 * "x")
    lines = numbered_lines(long)
    assert next(lines) == (1, "fine")
    with pytest.raises(ValueError, match=r"cannot read .*long.txt': its line 2 has more than 8"):
        next(lines)


def test_a_log_of_anything_is_taken_back(tmp_path: Path) -> None:
    good = [b'{"step": 1, "loss": 0.5}', b'{"step": 2, "loss": "\xff"}']
    bad = ["[]", "7", "null", '{"step": "1"}', '{"step": [1]}', '{"step": 1e999}', DEEP, "\0\0\0"]
    put(tmp_path / "log.jsonl", b"\n".join([good[0], *(b.encode() for b in bad), good[1]]))
    RunLog(tmp_path, start=9, total=9).close()
    assert (tmp_path / "log.jsonl").read_bytes() == good[0] + b"\n" + good[1] + b"\n"
    pipe(tmp_path / "log.jsonl")
    sentence(lambda: RunLog(tmp_path, start=9, total=9), "log.jsonl': it is not a regular file")


@pytest.mark.parametrize(
    "line",
    [
        DEEP,
        "7",
        "[1]",
        '{"photo": "p.png", "exemplar": "e.png", "group": "g", "box": [0, 0, 1e999, 9]}',
        '{"photo": "p.png", "exemplar": "e.png", "group": "g", "box": [0, 0, NaN, 9]}',
        '{"photo": "p.png", "exemplar": "e.png", "group": "g", "box": [0, 0, 9, ' + HUGE + "]}",
        '{"photo": "p.png", "exemplar": "e.png", "group": "g", "box": {"a": 0}}',
        '{"photo": "p.png", "exemplar": "e.png", "group": ' + NESTED + ', "box": [0, 0, 9, 9]}',
        '{"photo": ["p.png"], "exemplar": "e.png", "group": "g", "box": [0, 0, 9, 9]}',
    ],
)
def test_bad_pairs(line: str, tmp_path: Path) -> None:
    put(tmp_path / "val/pairs.jsonl", line)
    sentence(lambda: load_pairs(tmp_path, 1), "^line 1 of .* is not a pair")


def test_pairs_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"photo": "p.png", "exemplar": "p.png", "group": "g", "box": [0, 0, 41, 9]}
    picture(tmp_path / "p.png")
    put(tmp_path / "val/pairs.jsonl", json.dumps(entry))
    sentence(lambda: load_pairs(tmp_path, 1), "line 1 of .* has the box .* photo of 40 x 20")
    monkeypatch.setattr("training.evaluation.pairs._MAX_PIXELS", 1000)
    sentence(lambda: load_pairs(tmp_path, 1), "have 1,600 pixels, and 1,000 are the most")
    pipe(tmp_path / "p.png")
    sentence(lambda: load_pairs(tmp_path, 1), "p.png")
