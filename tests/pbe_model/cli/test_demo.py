"""The demonstration: what it writes, what it promises of it, and the bundled scenes and model."""

import functools
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from pbe_model import PaintByExample, edit
from pbe_model.checkpoints import load as checkpoint
from pbe_model.checkpoints import save as saving
from pbe_model.cli import demo
from pbe_model.cli.main import main
from pbe_model.config import DEMO
from pbe_model.image_io import read_image

from ..small import small_model


@pytest.fixture(scope="module")
def scenes():
    return demo.load_scenes()


@pytest.fixture
def bundled_small(tmp_path, monkeypatch):
    """A small model in the place of the bundled one, for speed."""
    path = tmp_path / "small.safetensors"
    saving.save_model(path, small_model())
    monkeypatch.setattr(checkpoint, "BUNDLED", path)


def test_scenes(scenes):
    assert len(scenes) >= 4
    assert len({scene.name for scene in scenes}) == len(scenes)
    assert any(scene.exemplar_mask is not None for scene in scenes)
    for scene in scenes:
        assert scene.photo.shape[:2] == scene.hole_mask.shape
        share = (scene.hole_mask > 0.5).float().mean()
        assert 0.01 < share < 0.5
        assert min(scene.exemplar.shape[:2]) >= 64
        if scene.exemplar_mask is not None:
            assert scene.exemplar_mask.shape == scene.exemplar.shape[:2]


def test_sheet_shows_every_picture_in_its_cell():
    colours = torch.eye(3)
    rows = [
        [("a", colours[0].expand(10, 400, 3)), ("b", colours[1].expand(300, 10, 3))],
        [("c", colours[2].expand(1, 1, 3))],
    ]
    sheet = demo.sheet(rows)
    assert 0 <= sheet.min() <= sheet.max() <= 1
    where = [(sheet == colour).all(-1).nonzero().float().mean(0) for colour in colours]
    assert where[0][0] < where[2][0]  # rows downwards
    assert where[0][1] < where[1][1]  # columns to the right
    assert (sheet == 0).all(-1).any()  # labels


def test_the_command(tmp_path, bundled_small, scenes, capsys, monkeypatch):
    monkeypatch.setattr(demo, "run", functools.partial(demo.run, steps=2))  # for speed
    out = tmp_path / "new" / "folder"
    assert main(["demo", "--out", str(out)]) == 0
    names = {f"{scene.name}-seed{seed}.png" for scene in scenes for seed in range(3)}
    assert {path.name for path in out.iterdir()} == names | {"grid.png"}
    for scene in scenes:
        images = [read_image(out / f"{scene.name}-seed{seed}.png") for seed in range(3)]
        hole = scene.hole_mask > 0.5
        assert not torch.equal(images[0][hole], images[1][hole])
        for image in images:
            changed = (image != scene.photo).any(-1)
            assert changed[hole].any()
            # Far from the hole nothing changes: its box may grow by the blend zone only.
            rows, columns = hole.any(1).nonzero(), hole.any(0).nonzero()
            box = torch.zeros_like(hole)
            box[
                max(0, rows[0] - 10) : rows[-1] + 11, max(0, columns[0] - 10) : columns[-1] + 11
            ] = True
            assert not changed[~box].any()
    with Image.open(out / "grid.png") as grid:
        assert grid.height / grid.width > 1
    said = capsys.readouterr().out
    assert str(out / "grid.png") in said
    same, outside = re.search(r"([\d,]+) of ([\d,]+) pixels outside .*identical", said).groups()
    assert same == outside
    assert int(outside.replace(",", "")) > 1_000_000
    assert re.search(r"[\d.]+ seconds", said)


def test_a_changed_pixel_is_counted(tmp_path, bundled_small, monkeypatch, capsys):
    def damaging(path, image, write=demo.write_image):
        image = image.clone()
        image[0, 0] = 1 - image[0, 0]
        write(path, image)

    monkeypatch.setattr(demo, "write_image", damaging)
    done = demo.run(PaintByExample.from_checkpoint(), tmp_path / "out", steps=1)
    assert done.pixels_changed == len(done.images)
    monkeypatch.setattr(demo, "run", lambda *args, **kwargs: done)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    same = done.pixels_outside - done.pixels_changed
    assert f"{same:,} of {done.pixels_outside:,} pixels" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made(tmp_path, bundled_small, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "the folder" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path / "file" / "below")]) == 2


def test_the_bundled_model(scenes):
    report = checkpoint.inspect(checkpoint.BUNDLED)
    vae = replace(DEMO.vae, scale_factor=report.config.vae.scale_factor)
    schedule = replace(DEMO.schedule, prediction="v", zero_terminal_snr=True)
    defaults = report.config.defaults
    assert report.config == replace(DEMO, vae=vae, schedule=schedule, defaults=defaults)
    assert report.dtypes == ["float16"]
    assert report.size <= 32e6
    assert report.missing == report.unexpected == []
    assert "training" in report.metadata
    scene = scenes[0]
    model = PaintByExample.from_checkpoint()
    result = edit(model, scene.photo, scene.hole_mask, scene.exemplar, steps=2, num_images=2)
    assert result.crops.shape == (2, DEMO.resolution, DEMO.resolution, 3)
    assert result.crops.std() > 0.01
