"""Lines of YOLO: the box that was meant, or a refusal; never another box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.prepare.annotations import open_reader
from training.prepare.annotations.yolo_lines import Layout

BOX = [0.5, 0.4, 0.2, 0.3]
CORNERS = (0.4, 0.25, 0.6, 0.55)
XY = [0.45, 0.45, 0.55, 0.45, 0.5, 0.5]  # three keypoints
XYV = [0.45, 0.45, 2, 0.55, 0.45, 1, 0, 0, 0]
PENTAGON = [0.4, 0.3, 0.6, 0.3, 0.7, 0.5, 0.5, 0.6, 0.3, 0.5]
AROUND = (0.3, 0.3, 0.7, 0.6)
OUTLINES = Layout(outlines=True, tracks=False)


@pytest.mark.parametrize(
    ("layout", "numbers", "corners"),
    [
        (Layout(), BOX, CORNERS),
        (Layout(), [*BOX, 0.93], CORNERS),
        (Layout(), [*BOX, 1], CORNERS),
        (Layout(), [*BOX, 17], CORNERS),  # a track
        (Layout(), [*BOX, 0.93, 7], CORNERS),
        (Layout(tracks=True), [*BOX, 0.93, 1], CORNERS),
        (Layout(), [*BOX, *XYV], CORNERS),
        (Layout(), [*BOX, *XYV, 0.93], CORNERS),
        (OUTLINES, [*BOX, *XYV], CORNERS),
        (Layout(keypoints=(3, 2)), [*BOX, *XY], CORNERS),
        (Layout(keypoints=(3, 2)), [*BOX, *XY, 0.9, 4], CORNERS),
        (Layout(keypoints=(3, 3)), [*BOX, *XYV], CORNERS),
        (Layout(keypoints=(3, 3)), BOX, CORNERS),
        (OUTLINES, PENTAGON, AROUND),
        (OUTLINES, [*PENTAGON, 0.93], AROUND),
        (OUTLINES, [*PENTAGON, 0.93, 7], AROUND),
        (Layout(outlines=True, tracks=True), [*PENTAGON, 0.93, 1], AROUND),
        (OUTLINES, [0.1, 0.2, 0.3, 0.1, 0.2, 0.9], (0.1, 0.1, 0.3, 0.9)),
    ],
)
def test_known_answers(layout: Layout, numbers: list[float], corners: tuple[float, ...]) -> None:
    assert layout.corners(numbers) == pytest.approx(corners)


@pytest.mark.parametrize(
    ("layout", "numbers", "reason"),
    [
        (Layout(), BOX[:3], "not 'class cx cy width height'"),
        (Layout(), [], "not 'class cx cy width height'"),
        (Layout(), [*BOX, -0.7], "a number that is no confidence"),
        (Layout(), [*BOX, 30.5], "a number that is no confidence"),
        (Layout(angles=True), [*BOX, 0.5], "a number that is no confidence"),
        (Layout(), [*BOX, 0.93, 1], "confidence and track"),
        (Layout(tracks=True), [*BOX, 0.93, 0.5], "confidence and track"),
        (Layout(), [*BOX, *XY], "kpt_shape"),
        (Layout(), PENTAGON, "kpt_shape"),
        (Layout(), [*BOX, *XY, 0.93], "kpt_shape"),
        (Layout(keypoints=(3, 2)), [*BOX, *XYV], "not the number of values that kpt_shape"),
    ],
)
def test_what_is_ambiguous_is_refused(layout: Layout, numbers: list[float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        layout.corners(numbers)


def random_outline(rng: np.random.Generator, points: int) -> list[float]:
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    around = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.03, 0.15, 2)
    return (rng.uniform(0.15, 0.85, 2) + around).ravel().tolist()


def random_pose(rng: np.random.Generator, count: int, values: int) -> list[float]:
    """Keypoints `x y`, or `x y confidence` as detectors write them."""
    size = rng.uniform(0.05, 0.5, 2)
    centre = rng.uniform(size / 2, 1 - size / 2)
    points = centre + rng.uniform(-0.5, 0.5, (count, 2)) * size
    points[rng.random(count) < 0.1] = 0  # not seen
    rows = np.concatenate([points, rng.random((count, values - 2))], 1)
    return [*centre, *size, *rows.ravel()]


@pytest.mark.parametrize("says_outlines", [False, True])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (lambda rng: random_outline(rng, int(rng.integers(4, 40))), True),
        (lambda rng: random_outline(rng, 10), True),
        (lambda rng: random_outline(rng, 3), True),
        (lambda rng: [*random_outline(rng, int(rng.integers(4, 40))), 0.9], True),
        (lambda rng: random_pose(rng, 1, 2), False),
        (lambda rng: random_pose(rng, 5, 2), False),
        (lambda rng: random_pose(rng, 17, 2), False),
        (lambda rng: random_pose(rng, 17, 3), False),
        (lambda rng: [*random_pose(rng, 17, 3), 0.9], False),
    ],
    ids=range(9),
)
def test_outlines_are_told_from_keypoints(
    line: Callable[[np.random.Generator], Sequence[float]], expected: bool, says_outlines: bool
) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        layout = Layout.of((line(rng) for _ in range(60)), says_outlines=says_outlines)
        assert layout.outlines == expected


def test_tracks_and_angles_are_told() -> None:
    assert Layout.of([[*BOX, 0.9, 1], [*BOX, 0.8, 2]]).tracks
    assert Layout.of([[*BOX, 0.9, 1], [*BOX, 0.8, 1]]).tracks is None
    assert Layout.of([[0.1, 0.2, 0.3, 0.1, 0.2, 0.9], [0.1, 0.2, 0.3, 0.1, 0.2, 1]]) == OUTLINES
    assert Layout.of([[*BOX, 45], [*BOX, -30.5]]).angles
    turned = [0.5, 0.4, 0.6, 0.5, 0.5, 0.6, 0.4, 0.5]  # an oriented box by its corners
    assert Layout.of([turned]).outlines
    assert Layout.of([]) == Layout()


@pytest.mark.parametrize("name", ["data.yaml", "data.yml", "dataset.yaml"])
def test_the_shape_of_keypoints_is_found(name: str, tmp_path: Path) -> None:
    for part in ("train", "val"):
        folder = tmp_path / part
        (folder / "labels").mkdir(parents=True)
        (folder / "images").mkdir()
        Image.new("RGB", (100, 100)).save(folder / "images/a.png")
        text = f"\ufeff0 {' '.join(map(str, BOX + XY))}\r\n0 {' '.join(map(str, BOX))} 0.9\r\n"
        (folder / "labels/a.txt").write_text(text, encoding="utf-8")
    (tmp_path / name).write_text("path: /home/other\nkpt_shape: [3, 2]  # x, y\nnames: {0: cat}\n")
    for images in (tmp_path, tmp_path / "train/images"):
        reader = open_reader("yolo", images)
        for entry in list(reader.entries()):
            photo = reader.read(entry)
            assert [box[:4] for box in photo.boxes] == [pytest.approx(CORNERS)] * 2
            assert photo.boxes[0].label == "cat" and not photo.faults


def test_names_are_counted_by_line_and_classes_may_have_decimals(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\n\r\ndog\r\n")
    (tmp_path / "a.txt").write_text("2.0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5\n7.0 0.5 0.5 0.5 0.5\n")
    reader = open_reader("yolo", tmp_path)
    (entry,) = reader.entries()
    assert [box.label for box in reader.read(entry).boxes] == ["dog", "cat", "7"]
    assert not reader.faults.total  # classes.txt is no text of a photo
