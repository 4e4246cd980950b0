"""The demo picture set: reproducible, resumable, boxes that are true, splits that do not leak."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.cli import main
from training.demo import sources
from training.demo.composite import (
    SEEN,
    Composer,
    Picture,
    alpha_box,
    paste,
    scale_to_area,
    turn,
)
from training.demo.make import CATALOGUE, prepare_demo
from training.demo.packages import folder_name
from training.demo.sources import (
    Source,
    prepare_sources,
    read_catalogue,
    shrink_cutout,
)

COLOURS = [(220, 30, 30), (30, 200, 40), (40, 60, 220), (220, 210, 30)]


def disc(colour: tuple[int, int, int], size: tuple[int, int] = (80, 60)) -> Image.Image:
    """A cut-out whose transparent pixels are pure green, as careless editors leave them."""
    image = Image.new("RGBA", size, (0, 255, 0, 0))
    ImageDraw.Draw(image).ellipse((4, 4, size[0] - 5, size[1] - 5), fill=(*colour, 255))
    return image


def row(kind: str, name: str, split: str, group: str = "") -> str:
    path = f"usr/share/{kind}/{name}.png"
    fields = [name, split, "toys", path, "CC0-1.0", "nobody", group]
    return "\t".join(fields).rstrip("\t") + "\n"


@pytest.fixture
def toys(tmp_path: Path) -> dict:
    """A catalogue of two cut-outs and two backgrounds a split, and its package, unpacked."""
    tree = tmp_path / "cache/unpacked/toys/usr/share"
    catalogue = tmp_path / "catalogue"
    for folder in (tree / "cutouts", tree / "backgrounds", catalogue):
        folder.mkdir(parents=True)
    header = "id\tsplit\tpackage\tpath\tlicence\tauthor"
    cutouts, backgrounds = header + "\tgroup\n", header + "\n"
    for i, colour in enumerate(COLOURS):
        split = "train" if i < 2 else "val"
        disc(colour).save(tree / f"cutouts/c{i}.png")
        cutouts += row("cutouts", f"c{i}", split, f"g{i}")
        Image.new("RGB", (150, 120), (40 + 50 * i,) * 3).save(tree / f"backgrounds/b{i}.png")
        backgrounds += row("backgrounds", f"b{i}", split)
    (catalogue / "cutouts.tsv").write_text(cutouts)
    (catalogue / "backgrounds.tsv").write_text(backgrounds)
    return {"cache": tmp_path / "cache", "catalogue": catalogue, "size": 64}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def composer(greys: tuple[int, int] = (0, 0), seed: int = 0) -> Composer:
    """White discs on two backgrounds of one grey each, so that the object is what is white."""
    cutout = Picture(id="c", group="g", pixels=np.asarray(disc((255, 255, 255))))
    backgrounds = [
        Picture(id=str(grey), pixels=np.full((100, 120, 3), grey, np.uint8)) for grey in greys
    ]
    return Composer(cutouts=[cutout], backgrounds=backgrounds, size=64, seed=seed)


def test_the_bytes_do_not_depend_on_the_number_of_processes(toys: dict, tmp_path: Path) -> None:
    for processes in (1, 2):
        prepare_demo(tmp_path / f"out{processes}", count=34, pairs=3, processes=processes, **toys)
    one, two = contents(tmp_path / "out1"), contents(tmp_path / "out2")
    assert one == two
    assert len([name for name in one if name.startswith("train/images/")]) == 34


def test_resume_keeps_files_and_makes_the_missing_ones(toys: dict, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = {"count": 6, "pairs": 2, "processes": 1, **toys}
    prepare_demo(out, **settings)
    before = contents(out)
    (out / "train/images/00001.jpg").unlink()
    (out / "train/boxes.jsonl").unlink()
    (out / "train/images/00002.jpg").write_bytes(b"kept")
    prepare_demo(out, **settings)
    assert contents(out) == {**before, "train/images/00002.jpg": b"kept"}


def test_a_folder_begun_otherwise_is_refused(toys: dict, tmp_path: Path) -> None:
    prepare_demo(tmp_path / "out", count=1, pairs=1, processes=1, **toys)
    with pytest.raises(ValueError, match=r"was begun with.*'seed': 0.*another folder"):
        prepare_demo(tmp_path / "out", count=1, pairs=1, processes=1, seed=7, **toys)


def test_written_records_point_at_the_right_pictures(toys: dict, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_demo(out, count=40, pairs=4, processes=1, **toys)
    lines = [json.loads(x) for x in (out / "train/boxes.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {"c0", "c1"}  # the training split only
    assert 40 < len(lines) < 60  # some hold two objects
    for line in lines:
        x0, y0, x1, y1 = line["box"]
        pixels = np.asarray(Image.open(out / line["image"]), dtype=float)
        centre = pixels[(y0 + y1) // 2, (x0 + x1) // 2]
        assert np.ptp(centre) > 60  # a colour, whichever: hues are turned; backgrounds are grey

    for line in map(json.loads, (out / "val/pairs.jsonl").read_text().splitlines()):
        x0, y0, x1, y1 = line["box"]
        photo = np.asarray(Image.open(out / line["photo"]), dtype=float)
        exemplar = np.asarray(Image.open(out / line["exemplar"]), dtype=float)
        assert line["id"] in {"c2", "c3"}
        centre = exemplar[exemplar.shape[0] // 2, exemplar.shape[1] // 2]
        same = photo[(y0 + y1) // 2, (x0 + x1) // 2]
        # one colour up to brightness, before two greys
        assert np.dot(centre, same) > 0.99 * np.linalg.norm(centre) * np.linalg.norm(same)


def test_seen_pairs_show_trained_objects_before_held_out_backgrounds(
    toys: dict, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare_demo(out, count=0, pairs=4, processes=1, **toys)
    lines = [json.loads(x) for x in (out / "seen/pairs.jsonl").read_text().splitlines()]
    assert Counter(line["id"] for line in lines) == {"c0": 2, "c1": 2}
    for line in lines:
        x0, y0, x1, y1 = line["box"]
        photo = np.asarray(Image.open(out / line["photo"]), dtype=float)
        photo[y0:y1, x0:x1] = np.nan
        assert np.nanmedian(photo) > 100  # 140 and 190 are held out, 40 and 90 are not
        assert (out / line["exemplar"]).is_file()
    boxes = [json.loads(x) for x in (out / "seen/boxes.jsonl").read_text().splitlines()]
    assert [(x["image"], x["box"]) for x in boxes] == [(x["photo"], x["box"]) for x in lines]


def test_the_pictures_alone_for_a_trainer_that_composes(toys: dict, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_demo(out, count=0, pairs=1, processes=1, **toys)
    lines = [json.loads(x) for x in (out / "objects.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert all((out / line["file"]).is_file() for line in lines)
    assert lines[2] == {"file": "cutouts/c2.png", "kind": "cutout", "split": "val", "group": "g2"}
    assert lines[4] == {
        "file": "backgrounds/b0.jpg", "kind": "background", "split": "train", "group": "",
    }  # fmt: skip
    assert not (out / "train/images").exists() and not (out / "train/boxes.jsonl").read_text()


def test_one_file_holds_all_but_the_training_composites(toys: dict, tmp_path: Path) -> None:
    large = toys["cache"] / "unpacked/toys/usr/share/backgrounds/b0.png"
    Image.new("RGB", (900, 600), (40, 40, 40)).save(large)
    out, archives = tmp_path / "out", [tmp_path / "1.tar", tmp_path / "2.tar"]
    for archive in archives:
        prepare_demo(out, count=2, pairs=3, processes=1, archive=archive, **toys)
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as file:
        file.extractall(tmp_path / "packed", filter="data")
    packed = contents(tmp_path / "packed")
    for name in ("val", "seen"):
        assert {k: v for k, v in packed.items() if k.startswith(name)} == {
            k: v for k, v in contents(out).items() if k.startswith(name)
        }
    lines = [json.loads(x) for x in packed["objects.jsonl"].splitlines()]
    pictures = {name for name in packed if name.split("/")[0] in ("cutouts", "backgrounds")}
    assert {line["file"] for line in lines} == pictures and len(pictures) == 8
    assert not any(name.startswith("train/") for name in packed)
    small = Image.open(tmp_path / "packed/backgrounds/b0.jpg")
    assert small.size == (768, 512)
    for i in range(4):
        cutout = np.asarray(Image.open(tmp_path / f"packed/cutouts/c{i}.webp"))
        original = np.asarray(Image.open(out / f"cutouts/c{i}.png"))
        np.testing.assert_array_equal(cutout[..., 3], original[..., 3])
        opaque = original[..., 3] == 255
        assert np.abs(cutout[opaque, :3].mean(0) - original[opaque, :3].mean(0)).max() < 4


def test_the_command_passes_on_what_to_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    monkeypatch.setattr(
        "training.demo.make.prepare_demo", lambda out, **given: calls.append((out, given))
    )
    command = ["prepare", "demo", "--out", str(tmp_path / "out"), "--count", "0", "--pairs", "0"]
    assert main([*command, "--pack", str(tmp_path / "a.tar")]) == 0
    ((out, given),) = calls
    assert out == tmp_path / "out"
    assert (given["count"], given["pairs"], given["archive"]) == (0, 0, tmp_path / "a.tar")
    assert main([*command, "--pack", str(tmp_path / "none/a.tar")]) == 2
    assert "none" in capsys.readouterr().err and len(calls) == 1


def test_boxes_are_inside_and_match_the_pasted_pixels() -> None:
    maker = composer()
    areas = []
    for index in range(60):
        made = maker.composite(index)
        found = np.zeros(made.photo.shape[:2], bool)
        for _, (x0, y0, x1, y1) in made.objects:
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
            areas.append((x1 - x0) * (y1 - y0) / 64**2)
            white = np.argwhere(made.photo[y0:y1, x0:x1, 0] > 0.1)
            assert np.all(white.min(0) <= 1)  # touches all four sides, give or take a soft edge
            assert np.all(white.max(0) >= (y1 - y0 - 2, x1 - x0 - 2))
            found[y0:y1, x0:x1] = True
        assert made.photo[~found].max() == 0  # nothing outside the boxes
    assert min(areas) > 0.04 and max(areas) < 0.6
    assert max(areas) > 3 * min(areas)


def test_a_composite_depends_on_seed_and_number_only() -> None:
    first, again = composer((90, 90)).composite(5), composer((90, 90))
    again.composite(4)
    np.testing.assert_array_equal(first.photo, again.composite(5).photo)
    assert np.any(first.photo != composer((90, 90)).composite(6).photo)
    assert np.any(first.photo != composer((90, 90), seed=1).composite(5).photo)


def test_an_exemplar_is_a_tight_crop_of_the_object() -> None:
    for index in range(10):
        white = composer().pair(index).exemplar[..., 0] > 0.1
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        for found, whole in ((rows, white.shape[0]), (columns, white.shape[1])):
            # 1 / 1.2 with both margins; 1 / 1.1 where the picture's edge takes one
            assert 0.8 < (found[-1] + 1 - found[0]) / whole <= 0.96


def test_a_pair_has_two_different_backgrounds() -> None:
    maker = composer((40, 120))  # a brightness of 0.75 to 1.25 does not confuse them
    for index in range(10):
        made = maker.pair(index)
        darkest = sorted((float(made.photo.min()), float(made.exemplar.min())))
        assert darkest[0] < 60 / 255 < darkest[1]


def test_cutouts_take_turns_in_an_order_of_each_stream() -> None:
    cutouts = [
        Picture(id=str(i), group="g", pixels=np.asarray(disc((255, 255, 255)))) for i in range(9)
    ]
    maker = Composer(cutouts=cutouts, backgrounds=composer().backgrounds, size=64, seed=0)
    val, seen = (
        [maker.pair(index, **stream).objects[0][0].id for index in range(18)]
        for stream in ({}, {"stream": SEEN})
    )
    for ids in (val, seen):
        assert sorted(ids[:9]) == sorted(ids[9:]) == [str(i) for i in range(9)]
        assert ids[:9] != sorted(ids[:9])  # the first few are not the catalogue's
    assert val != seen


def test_webp_cutouts_are_read(tmp_path: Path) -> None:
    source = Source(
        id="c", split="val", package="npm:@toys/box@1.0.0", path="assets/1f9f8.webp",
        licence="MIT", author="n", group="g",
    )  # fmt: skip
    path = tmp_path / "toys-box-1.0.0/assets/1f9f8.webp"
    path.parent.mkdir(parents=True)
    disc((200, 30, 30)).save(path, lossless=True, exact=True)
    prepare_sources(tmp_path, tmp_path / "out", [source])
    pixels = sources.load(source, tmp_path / "out").pixels
    np.testing.assert_array_equal(pixels, np.asarray(shrink_cutout(disc((200, 30, 30)))))


def test_no_halo_from_transparent_pixels() -> None:
    """The green of the transparent pixels must show nowhere: all scaling is premultiplied."""
    large = disc((255, 0, 255), (700, 500))
    small = np.asarray(shrink_cutout(large))
    assert max(small.shape) == sources.CUTOUT_SIDE
    for rgba in (small, np.asarray(large)):
        patch = scale_to_area(turn(rgba, degrees=17, flip=True, gain=1.0), 900, (60, 60))
        canvas = np.zeros((64, 64, 3), np.float32)
        paste(canvas, patch, 2, 3)
        assert canvas[..., 1].max() < 1e-3
        assert canvas[..., 0].max() == pytest.approx(1, abs=1e-3)


def test_turning_by_right_angles_is_exact() -> None:
    rgba = np.zeros((6, 4, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[0, 0, 0] = 255  # one red corner, top left
    turned = turn(rgba, degrees=90, flip=False, gain=1.0)
    assert turned.shape == (4, 6, 4)
    assert turned[-1, 0, 0] == pytest.approx(1, abs=1e-3)  # counter-clockwise: bottom left
    flipped = turn(rgba, degrees=0, flip=True, gain=0.5)
    assert flipped[0, -1, 0] == pytest.approx(0.5, abs=1e-3)


def test_alpha_box() -> None:
    alpha = np.zeros((5, 7))
    alpha[1:3, 2:6] = 1
    alpha[4, 0] = 0.2  # too faint to count
    assert alpha_box(alpha) == (2, 1, 6, 3)


def test_the_shipped_catalogue_holds_its_promises() -> None:
    cutouts, backgrounds = read_catalogue(CATALOGUE)
    held_out = [s for s in cutouts if s.split == "val"]
    assert len(cutouts) >= 900 and len(backgrounds) >= 60
    assert 0.08 < len(held_out) / len(cutouts) < 0.15
    assert len({s.group for s in held_out}) >= 80
    assert not {s.group for s in held_out} & {s.group for s in cutouts if s.split == "train"}
    assert all(s.group for s in cutouts)
    assert sum(s.split == "val" for s in backgrounds) >= 7
    for source in cutouts + backgrounds:
        assert source.split in ("train", "val")
        assert source.licence.startswith(("GPL-", "LGPL-", "CC-BY", "CC0", "CC-PDM", "MIT"))
        assert source.author and folder_name(source.package)


def test_the_bundled_scenes_are_held_out_complete_and_credited() -> None:
    assets = Path(__file__).parents[3] / "pbe_model/assets"
    cutouts, backgrounds = read_catalogue(CATALOGUE)
    trained_on = {source.path for source in cutouts if source.split == "train"}
    held_out = {source.path for source in cutouts + backgrounds if source.split == "val"}
    credits = (assets / "LICENSES.md").read_text(encoding="utf-8")
    scenes = json.loads((assets / "scenes/scenes.json").read_text(encoding="utf-8"))["scenes"]
    files = set()
    for scene in scenes:
        pictures = {kind: entry for kind, entry in scene.items() if isinstance(entry, dict)}
        sizes = {k: Image.open(assets / "scenes" / p["file"]).size for k, p in pictures.items()}
        assert sizes["photo"] == sizes["hole_mask"]
        assert sizes.get("exemplar_mask", sizes["exemplar"]) == sizes["exemplar"]
        hole = np.asarray(Image.open(assets / "scenes" / pictures["hole_mask"]["file"])) > 127
        assert 0.02 < hole.mean() < 0.25
        for kind, picture in pictures.items():
            files.add(picture["file"])
            assert f"`scenes/{picture['file']}`" in credits and picture["licence"] in credits
            if kind == "hole_mask":
                continue
            sources = {line.split(": ")[1] for line in picture["source"]}
            seen = scene["seen"] and kind == "exemplar"  # its object; what is behind it is not
            assert len(sources & trained_on) == seen and sources <= trained_on | held_out
    found = {str(p.relative_to(assets / "scenes")) for p in (assets / "scenes").glob("*/*.*")}
    assert found == files and len(scenes) >= 5
    assert sum(scene["seen"] for scene in scenes) == 3


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("cutouts", row("cutouts", "leak", "train", "g3"), "group 'g3' in both splits"),
        ("backgrounds", row("backgrounds", "b0", "train"), "the name 'b0' twice"),
    ],
)
def test_a_bad_catalogue_is_refused(toys: dict, kind: str, line: str, message: str) -> None:
    with (toys["catalogue"] / f"{kind}.tsv").open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=message):
        read_catalogue(toys["catalogue"])


def test_a_picture_the_package_lost_is_named(tmp_path: Path) -> None:
    gone = Source(
        id="c", split="val", package="p", path="gone.png", licence="CC0-1.0", author="n", group="g"
    )
    with pytest.raises(ValueError, match=r"p holds no gone.png.*take 'c' out"):
        prepare_sources(tmp_path, tmp_path / "out", [gone])
