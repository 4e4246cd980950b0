"""The evaluation: that its score means something, that it paints as `edit` does, bad input."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pbe_model import PaintByExample, edit
from training.evaluation.evaluate import (
    Painting,
    evaluate_demo,
    evaluate_pairs,
    evaluate_photos,
    score_pairs,
)
from training.evaluation.measures import descriptor, mean_laplacian, outline_step, psnr, wilson
from training.evaluation.pairs import CANDIDATES, Pair, draw_candidates, load_pairs
from training.evaluation.photos import load_photos
from training.evaluation.table import TRUTH, Row, Scores, format_table


@pytest.fixture(scope="module")
def model(small_checkpoint: Path) -> PaintByExample:
    return PaintByExample.from_checkpoint(small_checkpoint)


def test_rows_of_a_model_that_has_learnt_nothing(pairs: Path, model: PaintByExample) -> None:
    found = evaluate_demo(pairs, model, pairs=12, steps=1, batch=5)
    assert [row.name for row in found.rows] == [
        *(f"similarity {s}" for s in (0, 1, 3, 5)),
        "shuffled, similarity 3",
        "the photo itself",
    ]
    assert all(row.outside == 0 and row.pairs == 12 for row in found.rows)
    assert found.rows[-1].hits == found.rows[-1].hits_grey == 12
    assert all(row.hits <= 6 and row.hits_grey <= 6 for row in found.rows[:-1])
    assert found.rows[-1].seam == found.rows[-1].sharpness == 1
    assert found.rows[-1].likeness > 0.9
    assert all(row.likeness < found.rows[-1].likeness for row in found.rows[:-1])
    assert found.rows[-1].psnr is None and all(0 < (row.psnr or 0) < 40 for row in found.rows[:-1])
    figures = json.loads(found.to_json())
    assert figures["rows"][-1]["retrieval"] == figures["rows"][-1]["retrieval_grey"] == 1
    assert figures["rows"][-1]["psnr"] is None and figures["chance"] == 0.125
    table = format_table(found)
    assert all(row.name in table for row in found.rows) and "100.0%" in table
    again = evaluate_demo(pairs, model, pairs=12, steps=1, batch=12)
    assert [row.hits for row in again.rows] == [row.hits for row in found.rows]
    alone = evaluate_pairs(model, load_pairs(pairs, 12), similarity=3.0, steps=1, batch=5)
    assert alone == found.rows[2].figures and len(alone) == 7


def test_another_split_lies_beside_the_held_out_one(
    pairs: Path, tmp_path: Path, model: PaintByExample
) -> None:
    shutil.copytree(pairs, tmp_path, dirs_exist_ok=True)
    lines = (tmp_path / "val/pairs.jsonl").read_text().splitlines()
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen/pairs.jsonl").write_text("\n".join(reversed(lines)))
    there, back = load_pairs(tmp_path, 12), load_pairs(tmp_path, 12, "seen")
    assert [pair.group for pair in back] == [pair.group for pair in reversed(there)]
    found = evaluate_demo(tmp_path, model, split="seen", pairs=12, steps=1)
    assert "12 pairs of seen," in format_table(found)
    assert json.loads(found.to_json())["split"] == "seen"


def test_the_step_across_an_outline() -> None:
    picture = torch.zeros(10, 12, 3)
    picture[2:6, 3:8] = 0.5
    assert outline_step(picture, (3, 2, 8, 6)) == 0.5
    assert outline_step(picture, (0, 0, 12, 10)) == 0
    picture[0, :] = 1.0  # a box at the upper border: three sides count, 5 + 4 + 4 pixels
    assert outline_step(picture, (3, 0, 8, 2)) == pytest.approx(0.5 * 5 / (5 + 2 + 2))


def dots(*columns: int) -> torch.Tensor:
    """Black, with white pixels in the middle row."""
    picture = torch.zeros(9, 20, 3)
    picture[4, list(columns)] = 1
    return picture


def test_the_laplacian_of_lightness_inside_a_box() -> None:
    """In steps of L, from 0 to 100: a white pixel differs from four black ones by 400."""
    box = (2, 2, 7, 7)  # 3 x 3 pixels inside its rim
    assert mean_laplacian(dots(4), box) == pytest.approx((400 + 4 * 100) / 9, rel=1e-5)
    assert mean_laplacian(dots(4, 12), box) == mean_laplacian(dots(4), box)
    assert mean_laplacian(dots(2), box) == pytest.approx(100 / 9, rel=1e-5)  # next to the rim
    assert mean_laplacian(torch.full((9, 9, 3), 0.3), box) == 0
    assert mean_laplacian(dots(4), (4, 2, 6, 7)) == 0  # too narrow to have an inside
    squares = (torch.arange(9)[:, None] + torch.arange(9)) % 2
    checkers = squares[..., None].expand(9, 9, 3).float()
    assert mean_laplacian(checkers, box) == pytest.approx(400, rel=1e-5)


def scored(photos: list[torch.Tensor], painted: list[torch.Tensor]) -> Row:
    """The row of these pictures; each box is its own exemplar, and all the others."""
    box = (1, 1, 19, 8)
    pairs = [
        Pair(photo=photo, exemplar=photo, box=box, group=str(i)) for i, photo in enumerate(photos)
    ]
    scores = Scores(pairs, [[i, *range(i), *range(i + 1, len(pairs))] for i in range(len(pairs))])
    for name, pictures in (("painted", painted), (TRUTH, photos)):
        for i, picture in enumerate(pictures):
            scores.add(name, i, picture, i)
    return scores.row("painted")


def test_sharpness_is_the_ratio_of_the_means() -> None:
    photos = [dots(4), dots(4, 8, 12)]
    assert scored(photos, photos).sharpness == 1
    assert scored(photos, [torch.full((9, 20, 3), 0.5)] * 2).sharpness == 0
    assert scored(photos, [dots(4, 8, 12)] * 2).sharpness == pytest.approx(6 / 4)
    assert math.isnan(scored([dots(), dots()], photos).sharpness)


def test_retrieval_in_grey_takes_more_than_the_right_colour() -> None:
    """Red and blue stripes of two directions: one is told by colour, the other by its edges."""
    across = 0.7 + 0.3 * (torch.arange(20) // 3 % 2).expand(9, 20)[..., None]
    down = 0.7 + 0.3 * (torch.arange(9) // 3 % 2)[:, None].expand(9, 20)[..., None]
    red, blue = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.25, 0.4, 0.95])
    photos = [across * red, down * blue]
    row = scored(photos, photos)
    assert (row.hits, row.hits_grey) == (2, 2)
    row = scored(photos, [down * red, across * blue])
    assert (row.hits, row.hits_grey) == (2, 0)
    row = scored(photos, [across * blue, down * red])
    assert (row.hits, row.hits_grey) == (0, 2)


def test_peak_signal_to_noise_ratio() -> None:
    picture = torch.full((4, 5, 3), 0.5)
    assert psnr(picture, picture + 0.1) == pytest.approx(20, abs=1e-4)
    assert psnr(picture, picture) == float("inf")


def test_painting_together_is_painting_alone(pairs: Path, model: PaintByExample) -> None:
    found, shown = load_pairs(pairs, 12), {}
    paintings = [Painting(similarity=similarity) for similarity in (0.0, 1.0, 3.0)]
    paintings.append(Painting(similarity=3.0, shuffled=True))
    score_pairs(model, found, paintings, steps=2, sampler="dpmpp_2m", seed=7, batch=5,
                show=lambda name, i, picture: shown.__setitem__((name, i), picture))  # fmt: skip
    groups = [pair.group for pair in found]
    for i in (0, 4, 6, 11):
        for painting in paintings:
            other = draw_candidates(groups, i, seed=7)[1]
            alone = edit(
                model,
                found[i].photo,
                found[i].hole_mask,
                found[other if painting.shuffled else i].exemplar,
                steps=2,
                similarity=painting.similarity,
                seed=7 + i,
            ).images[0]
            torch.testing.assert_close(shown[painting.name, i], alone, rtol=0, atol=1e-4)


def test_candidates_are_keyed_and_of_other_groups() -> None:
    groups = [f"group-{i % 10}" for i in range(50)]
    for number in range(50):
        candidates, shuffled = draw_candidates(groups, number, seed=0)
        assert candidates[0] == number and len(candidates) == CANDIDATES
        drawn = [groups[i] for i in (*candidates, shuffled)]
        assert len(set(drawn)) == CANDIDATES + 1
        assert draw_candidates(groups, number, seed=0) == (candidates, shuffled)
    assert draw_candidates(groups, 0, seed=1) != draw_candidates(groups, 0, seed=0)


def test_descriptor_is_near_for_the_same_thing_and_blind_to_the_rim() -> None:
    rng = np.random.default_rng(0)
    one, two = torch.from_numpy(rng.random((2, 40, 40, 3), np.float32))
    brighter = (one * 1.1).clamp(0, 1)
    framed = one.clone()
    framed[:3] = framed[-3:] = framed[:, :3] = framed[:, -3:] = 0

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(np.linalg.norm(descriptor(a) - descriptor(b)))

    red = torch.tensor([0.8, 0.1, 0.1]).expand(40, 40, 3)
    assert distance(one, one) == 0
    assert distance(one, brighter) < distance(one, two) < distance(one, red)
    assert distance(one, framed) < distance(one, red) / 2
    padded = torch.nn.functional.pad(one, (0, 0, 4, 4, 4, 4))
    np.testing.assert_allclose(descriptor(padded, margin=4 / 48), descriptor(one), atol=1e-6)


def test_descriptor_tells_directions_of_edges() -> None:
    ramp = torch.linspace(0, 1, 32)[:, None, None].expand(32, 32, 3)
    down, across = descriptor(ramp.contiguous()), descriptor(ramp.transpose(0, 1).contiguous())
    edges_down, edges_across = down[-128:].reshape(16, 8), across[-128:].reshape(16, 8)
    assert (edges_down.argmax(1) == 4).all() and (edges_across.argmax(1) == 0).all()
    assert np.square(edges_down).sum() == pytest.approx(1, abs=1e-6)


def test_descriptor_in_grey_is_blind_to_hues() -> None:
    flat = torch.full((40, 40, 3), 0.5)  # L is 53, in the third of four levels
    histogram = np.square(descriptor(flat, grey=True)[48:-128])
    assert histogram[2 * 64 + 4 * 8 + 4] == pytest.approx(1)
    pixels = torch.from_numpy(np.random.default_rng(0).random((32, 32, 3), np.float32))
    lab = cv2.cvtColor(pixels.numpy(), cv2.COLOR_RGB2Lab)
    lab[..., 1:] = 0
    grey = torch.from_numpy(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB))
    assert np.linalg.norm(descriptor(pixels) - descriptor(grey)) > 0.3
    np.testing.assert_allclose(
        descriptor(pixels, grey=True), descriptor(grey, grey=True), atol=1e-2
    )


def test_wilson_interval() -> None:
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_bad_input(pairs: Path, tmp_path: Path, model: PaintByExample) -> None:
    with pytest.raises(ValueError, match=r"no pairs at .*val/pairs.jsonl"):
        evaluate_demo(tmp_path, model)
    with pytest.raises(ValueError, match="holds 12 pairs, not 13; ask for fewer"):
        evaluate_demo(pairs, model, pairs=13)
    with pytest.raises(ValueError, match=r"show 5 groups of objects.*needs 9"):
        evaluate_demo(pairs, model, pairs=5)
    with pytest.raises(ValueError, match=r"no pairs at .*seen/pairs.jsonl"):
        evaluate_demo(pairs, model, split="seen")
    with pytest.raises(ValueError, match="batch is 0"):
        evaluate_demo(pairs, model, pairs=12, batch=0)
    with pytest.raises(ValueError, match="seed is -1"):
        evaluate_pairs(model, load_pairs(pairs, 9), seed=-1)
    (tmp_path / "val").mkdir()
    (tmp_path / "val/pairs.jsonl").write_text('{"photo": "a.png", "box": [1, 2]}')
    with pytest.raises(ValueError, match=r"line 1 of .* is not a pair"):
        load_pairs(tmp_path, 1)


def test_photos_of_ones_own_are_painted_again(photos: Path, model: PaintByExample) -> None:
    """Each with its own box; a photo is a group of its own."""
    found = evaluate_photos(photos, model, split="val/boxes.jsonl", steps=1)
    names = [*(f"similarity {s}" for s in (0, 1, 3, 5)), "shuffled, similarity 3", TRUTH]
    assert [row.name for row in found.rows] == names
    assert all(row.outside == 0 and row.pairs == 10 for row in found.rows)
    assert found.rows[-1].hits == 10 and found.candidates == 8
    assert "among 8, 10 pairs of val/boxes.jsonl" in format_table(found)
    (pair,) = load_photos(photos, "val/boxes.jsonl", 1)
    assert pair.box == (6, 6, 18, 18) and pair.group == "val/0.png"
    assert torch.equal(pair.exemplar, pair.photo[6:18, 6:18])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_photos_are_compared_with_fewer(
    photos: Path, model: PaintByExample, count: int
) -> None:
    found = evaluate_photos(photos, model, split="val/boxes.jsonl", steps=1, pairs=count)
    assert found.candidates == max(1, count - 1)
    assert any("shuffled" in row.name for row in found.rows) == (count > 1)
    assert json.loads(found.to_json())["chance"] == 1 / max(1, count - 1)


def test_large_photos_are_reduced_and_lost_ones_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo = np.zeros((1000, 2048, 3), np.uint8)
    photo[200:600, 400:1000] = 255
    lines = []
    boxes_of = {"a.png": [[400, 200, 1000, 600], [0, 0, 200, 400]], "b.png": [[0, 0, 300, 300]]}
    for name, boxes in boxes_of.items():
        cv2.imwrite(str(tmp_path / name), photo)
        lines += [json.dumps({"image": name, "box": box}) for box in boxes]
    (tmp_path / "val").write_text("\n".join(lines))
    pairs = load_photos(tmp_path, "val", 9)
    assert [pair.group for pair in pairs] == ["a.png", "b.png", "a.png"]
    assert pairs[0].photo.shape == (500, 1024, 3) and pairs[0].box == (200, 100, 500, 300)
    assert pairs[0].photo[100:300, 200:500].min() == 1
    (tmp_path / "a.png").unlink()
    assert [pair.group for pair in load_photos(tmp_path, "val", 9)] == ["b.png"]
    assert "leaving out a.png: No such file" in caplog.text
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=r"none of the photos of .*val can be read"):
        load_photos(tmp_path, "val", 9)
