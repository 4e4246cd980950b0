"""What an interrupted `prepare` left, and the demo set."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import training.data.index
import training.data.unreadable
from training.cli import main
from training.data.unreadable import UnreadableList
from training.demo.sources import Source, load
from training.prepare.pieces import Piece, finish

from .files import (
    DEEP,
    NESTED,
    RECORD,
    TERMINAL,
    picture,
    pipe,
    png,
    put,
    sentence,
)

# ---- what an interrupted `prepare` left --------------------------------------------------------


@pytest.mark.parametrize(
    "stored",
    [
        DEEP,
        "[]",
        "{}",
        {"photos": {}},
        {"photos": [5]},
        {"photos": [{**RECORD, "path": 5}]},
        {"photos": [{**RECORD, "labels": []}]},
        {"photos": [{**RECORD, "shard": "0"}]},
        {"photos": [{**RECORD, "offset": -1}]},
        {"photos": [{**RECORD, "shard": [0]}]},
        {"unusable": {}},
        {"unusable": ["ab"]},
        {"unusable": [["a", 5]]},
        {"unusable": [["a", "b"]]},
        {"guessed": []},
        {"guessed": [5]},
        {"boxless": [5]},
        {"boxless": "a"},
        {"faults": []},
        {"faults": {"counts": {}, "listed": [["a", 5]], "unlisted": 0}},
        {"faults": {"counts": {}, "listed": [], "unlisted": "0"}},
        {"faults": {"counts": {"a": "b"}, "listed": [], "unlisted": 0}},
        {"counts": []},
        {"counts": {"a": "b"}},
        {"counts": {"a": 1.5}},
    ],
)
def test_damaged_pieces(stored: str | dict, tmp_path: Path) -> None:
    whole = {
        "photos": [RECORD],
        "guessed": [""],
        "boxless": ["b"],
        "unusable": [["a", "b", "c"]],
        "faults": {"counts": {"d": 1}, "listed": [["e", "f"]], "unlisted": 2},
        "counts": {"c": 1},
    }
    text = stored if isinstance(stored, str) else json.dumps({**whole, **stored})
    path = put(tmp_path / "work/0.json", text)
    sentence(lambda: Piece.load(path), "0.json.*; delete the folder '.*work' and start the same")
    piece = Piece.load(put(path, json.dumps(whole)))
    assert piece.photos[0].boxes.tolist() == [[0, 0, 9, 9]] and piece.counts == {"c": 1}
    assert piece.unusable == [("a", "b", "c")] and piece.faults.total == 3


def test_a_piece_that_is_no_file_is_made_again(tmp_path: Path) -> None:
    path = pipe(tmp_path / "0.json")
    assert Piece.load(finish(path, ["a", "\ud800"], Piece)) == Piece()


@pytest.fixture
def prepared(images: Path, tmp_path: Path) -> list[str]:
    """Words of a command that works."""
    picture(images / "b.png")
    lines = [json.dumps({"image": n, "box": [0, 0, 20, 10]}) for n in ("a.png", "b.png")]
    path = put(tmp_path / "boxes.jsonl", "\n".join(lines))
    words = ["prepare", "boxes", "--images", str(images), "--annotations", str(path)]
    return [*words, "--out", str(tmp_path / "out"), "--val", "0", "--processes", "1"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (DEEP, "nested too deeply"),
        ("[]", "no JSON object"),
        ("5", "no JSON object"),
        (json.dumps({TERMINAL * 99: NESTED}), "was begun with"),
        (json.dumps({"images": "IT"}).replace('"IT"', NESTED), "was begun with .*others"),
        (json.dumps(dict.fromkeys(map(str, range(9999)), "x" * 500)), "10[0-9]+ others"),
    ],
    ids=range(6),
)
def test_settings_of_another_run(
    settings: str,
    reason: str,
    prepared: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(tmp_path / "out/prepare.json", settings)
    assert main(prepared) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert len(said) < 1000 and said.isprintable()
    assert "give another --out, or delete that folder" in said
    assert re.search(reason, said), said
    pipe(tmp_path / "out/prepare.json")
    assert main(prepared) == 2 and "not a regular file" in capsys.readouterr().err


def test_names_that_a_list_of_photos_escapes(
    images: Path, tmp_path: Path, prepared: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["x\ny.png", "tab\t.png", "\x1b[31m.png", "\ud800.png", "pipe.png"]
    lines = [json.dumps({"image": name, "box": [0, 0, 20, 10]}) for name in names]
    label = {"image": "a.png", "box": [0, 0, 30, 10], "label": TERMINAL * 100}
    path = tmp_path / "boxes.jsonl"
    put(path, "\n".join([path.read_text(), *lines, json.dumps(label)]))
    pipe(images / "pipe.png")
    assert main(prepared) == 0
    listed = (tmp_path / "out/unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == [
        "x\\ny.png", "tab\\t.png", "\\x1b[31m.png", "\\ud800.png", "pipe.png"
    ]  # fmt: skip
    assert listed[-1].split("\t")[1] == "it is not a regular file"
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and max(map(len, printed.splitlines())) < 200


def test_the_list_of_a_run_escapes_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = UnreadableList(tmp_path / "list.txt")
    assert found.note("x\ny\tz\x1b.png", "a\nreason\x1b") and not found.note("x\ny\tz\x1b.png", "")
    assert (tmp_path / "list.txt").read_text() == "x\\ny\\tz\\x1b.png\ta reason\\x1b\n"
    later = UnreadableList(tmp_path / "list.txt")
    assert not later.note("x\ny\tz\x1b.png", "again")
    monkeypatch.setattr(training.data.unreadable, "_MAX_LIST", 9)
    sentence(lambda: UnreadableList(tmp_path / "list.txt"), "9 are the most; move it away")


# ---- the demo set ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [DEEP, "[]", json.dumps({TERMINAL: "x" * 9999})])
def test_a_demo_set_of_something_else(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "demo.json", settings)
    assert main(["prepare", "demo", "--out", str(tmp_path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "give another folder, or delete this one" in said
    assert said.isprintable() and len(said) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_prepared_pictures_that_are_something_else(tmp_path: Path) -> None:
    source = Source(
        id="s", split="train", package="p", path="x", licence="CC0-1.0", author="me", group="g"
    )
    path = tmp_path / source.prepared
    for make in (picture, pipe, lambda p: put(p, b"text"), lambda p: put(p, png(9**5, 9**5))):
        make(path)
        sentence(lambda: load(source, tmp_path), r"s\.png.*; delete it and start the same command")
