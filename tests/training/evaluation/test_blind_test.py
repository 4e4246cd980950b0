"""The blind test: the key names the exemplar that was painted, and nothing else is to be seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import blind_test
from pbe_model import PaintByExample
from pbe_model.image_io import read_image
from training.evaluation.pairs import load_pairs


def test_every_crop_has_its_exemplar_among_those_of_other_groups(
    pairs: Path, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets = []
    before: dict[int, Tensor] = {}  # pictures by what was made squares of them
    real, square = blind_test.sheet, blind_test._square

    def remembered(picture: Tensor) -> Tensor:
        result = square(picture)
        before[id(result)] = picture
        return result

    monkeypatch.setattr(blind_test, "sheet", lambda rows: sheets.append(rows) or real(rows))
    monkeypatch.setattr(blind_test, "_square", remembered)
    found = load_pairs(pairs, 12)
    model = PaintByExample.from_checkpoint(small_checkpoint)
    blind_test.draw(model, found, 3, 0, tmp_path / "one")
    blind_test.draw(model, found, 3, 0, tmp_path / "again")
    key = json.loads((tmp_path / "one" / blind_test.KEY).read_text())
    assert len(key) == 3 and set(key) <= set(range(1, 9))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 7
    for name in names[:-1]:
        one, again = (read_image(tmp_path / folder / name) for folder in ("one", "again"))
        assert torch.equal(one, again), name
    for place, crop, candidates in zip(key, sheets[0:6:2], sheets[1:6:2], strict=True):
        [[(_, shown)]] = crop
        picture = before[id(shown)]
        # Its edge, away from the box, still is that of its photo.
        [painted] = [pair for pair in found if torch.equal(picture[0], pair.photo[5, 11:29])]
        cells = [cell for row in candidates for cell in row]
        assert [label for label, _ in cells] == list("12345678")
        assert {picture.shape for _, picture in (*crop[0], *cells)} == {(160, 160, 3)}
        right = [torch.equal(before[id(shown)], painted.exemplar) for _, shown in cells]
        assert right == [number == place for number in range(1, 9)]


def test_picks_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / blind_test.KEY).write_text("[3, 1, 8, 2]")
    picks = tmp_path / "picks.txt"
    picks.write_text("3\n5\n8\n2\n")
    monkeypatch.setattr(sys, "argv", ["blind_test", "score", str(tmp_path), "--picks", str(picks)])
    blind_test.main()
    assert capsys.readouterr().out == "3 of 4 right; picking blindly, 0.5\n"
