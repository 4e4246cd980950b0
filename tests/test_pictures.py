"""The pictures in the repository: what they were made from, and how `make pictures` makes them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from docs.pictures import __main__ as command
from docs.pictures import demo, figures, help_pages, page, thumbnails
from docs.pictures.drawing import bounding_box, captioned, show_hole, view_around
from docs.pictures.hosting import GraphError, Tapped, read_workflow, upstream
from docs.pictures.jpeg import read_marks, write_jpeg
from docs.pictures.marks import graph_mark, marks_of_graph, model_mark, scene_names
from pbe_model.scenes import SCENES

from .nodes.conftest import HOW_TO_GET_IT
from .nodes.graph import STAND_IN
from .nodes.host import find_host

REMEDY = "was made from something else than it shows today; run `make pictures`"
WORKFLOWS = thumbnails.workflows()


# ---- the pictures that are there ----------------------------------------------------------------


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_thumbnail_is_of_the_graph_beside_it(path: Path) -> None:
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.is_file(), f"{path.name} has no thumbnail; run `make pictures`"
    marks = read_marks(thumbnail)
    marks.pop("without", None)
    assert marks == marks_of_graph(read_workflow(path)), f"{thumbnail.name} {REMEDY}"


def test_no_thumbnail_is_left_of_a_graph_that_is_gone() -> None:
    found = {path.stem for path in thumbnails.FOLDER.glob("*.jpg")}
    assert found == {path.stem for path in WORKFLOWS}


def test_the_screenshot_is_of_the_starter() -> None:
    assert read_marks(page.SCREENSHOT) == page.starter().marks, f"{page.SCREENSHOT.name} {REMEDY}"


@pytest.mark.parametrize("path", [demo.SHEET, *sorted(help_pages.IMAGES.glob("*.jpg"))])
def test_a_picture_that_shows_the_model_shows_the_bundled_one(path: Path) -> None:
    marks = read_marks(path)
    shows_it = path.stem in ("demo", "PBEInpaintSampler", "PBEStitch")
    assert ("model" in marks) >= shows_it
    assert marks.get("model", model_mark()) == model_mark(), f"{path.name} {REMEDY}"


def test_every_help_page_has_a_picture_and_every_picture_a_page() -> None:
    for help_page in help_pages.PAGES.glob("*.md"):
        assert "](images/" in help_page.read_text(encoding="utf-8"), f"{help_page.name}: no picture"
    found = {path.stem for path in help_pages.IMAGES.glob("*.jpg")}
    assert found == set(help_pages.names()), "run `make pictures`, or remove what no page shows"


# ---- what a fingerprint depends on --------------------------------------------------------------


@pytest.fixture()
def workflow() -> dict[str, Any]:
    return read_workflow(thumbnails.FOLDER / "several_regions.json")


def node(workflow: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(node for node in workflow["nodes"] if node["type"] == kind)


def add_to_seed(workflow: dict[str, Any]) -> None:
    node(workflow, "PBEInpaintSampler")["widgets_values"][0] += 1


def swap_exemplars(workflow: dict[str, Any]) -> None:
    one, other = (node for node in workflow["nodes"] if node["type"] == "PBEExemplarEncoder")
    for socket in (one["inputs"], other["inputs"]):
        assert socket[1]["name"] == "exemplar"
    one["inputs"][1], other["inputs"][1] = other["inputs"][1], one["inputs"][1]


def mute(workflow: dict[str, Any]) -> None:
    node(workflow, "PreviewImage")["mode"] = 2


@pytest.mark.parametrize("change", [add_to_seed, swap_exemplars, mute])
def test_a_change_of_what_a_graph_computes_changes_its_mark(
    workflow: dict[str, Any], change: Callable[[dict[str, Any]], None]
) -> None:
    changed = copy.deepcopy(workflow)
    change(changed)
    assert graph_mark(changed) != graph_mark(workflow)


def test_places_notes_and_numbers_of_links_do_not_change_it(workflow: dict[str, Any]) -> None:
    changed = copy.deepcopy(workflow)
    changed["groups"].append({"title": "new"})
    node(changed, "MarkdownNote")["widgets_values"][0] += "more"
    for item in changed["nodes"]:
        item["pos"] = [0, 0]
        for socket in item.get("inputs", []):
            if socket["link"] is not None:
                socket["link"] += 100
    for link in changed["links"]:
        link[0] += 100
    assert graph_mark(changed) == graph_mark(workflow)


def test_a_change_within_a_subgraph_changes_it(workflow: dict[str, Any]) -> None:
    link = {"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0}
    inside = {"id": 2, "type": "PBEStitch", "inputs": [{"name": "image", "link": 1}]}
    workflow["definitions"] = {"subgraphs": [{"nodes": [inside], "links": [link]}]}
    before = graph_mark(workflow)
    link["origin_slot"] = 1
    assert graph_mark(workflow) != before


def test_a_changed_scene_changes_the_mark_of_graphs_that_load_it(
    workflow: dict[str, Any], tmp_path: Path
) -> None:
    scenes = tmp_path / "scenes"
    shutil.copytree(SCENES, scenes)
    assert marks_of_graph(workflow, scenes) == marks_of_graph(workflow)
    (scenes / "meadow/photo.jpg").write_bytes(b"another")
    assert "meadow" not in scene_names(workflow)
    assert marks_of_graph(workflow, scenes) == marks_of_graph(workflow)
    (scenes / scene_names(workflow)[0] / "photo.jpg").write_bytes(b"another")
    before, after = marks_of_graph(workflow), marks_of_graph(workflow, scenes)
    assert {key for key in before if before[key] != after[key]} == {"inputs"}


def test_a_graph_that_waits_for_pictures_is_drawn_with_the_scene_that_stands_in() -> None:
    app = read_workflow(thumbnails.FOLDER / "paint_by_example.app.json")
    assert scene_names(app) == [STAND_IN]
    for item in app["nodes"]:
        if item["type"] == "LoadImage":
            item["widgets_values"][0] = "mine.png"
    assert scene_names(app) == []


# ---- files --------------------------------------------------------------------------------------


def test_a_picture_is_written_only_when_it_or_its_origin_changes(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    picture = Image.radial_gradient("L").convert("RGB")
    assert write_jpeg(path, picture, {"graph": "one"})
    assert read_marks(path) == {"graph": "one"}
    with Image.open(path) as read:
        noisy = Image.fromarray(np.asarray(read).clip(3) - np.uint8(3))  # of an encoder
    before = path.read_bytes()
    assert not write_jpeg(path, noisy, {"graph": "one"}) and path.read_bytes() == before
    assert write_jpeg(path, noisy, {"graph": "two"}) and path.read_bytes() != before
    ImageDraw.Draw(noisy).line((9, 9, 19, 9), "red")
    assert write_jpeg(path, noisy, {"graph": "two"})
    assert write_jpeg(path, noisy.resize((90, 90)), {"graph": "two"})
    assert [file.name for file in tmp_path.iterdir()] == ["picture.jpg"]


def test_a_picture_of_another_program_has_no_marks(tmp_path: Path) -> None:
    for name, comment in (("none", b""), ("foreign", b"made with love")):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.jpg", comment=comment)
        assert read_marks(tmp_path / f"{name}.jpg") == {}


# ---- drawing ------------------------------------------------------------------------------------


def hole_at(box: tuple[int, int, int, int], size: tuple[int, int] = (512, 384)) -> Image.Image:
    hole = Image.new("L", size)
    ImageDraw.Draw(hole).ellipse(box, 255)
    return hole


def scene(count: int, exemplars: int) -> thumbnails.Scene:
    return thumbnails.Scene(
        photos=[Image.new("RGB", (512, 384), "blue")],
        holes=[hole_at((300, 200, 400, 290))],
        exemplars=[Image.new("RGB", (90, 90), "lime")] * exemplars,
        results=[Image.new("RGB", (1024, 768), "red")] * count,
    )


def share(picture: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((np.asarray(picture) == colour).all(-1).mean())


@pytest.mark.parametrize(("count", "exemplars"), [(1, 1), (1, 2), (2, 1), (3, 3), (4, 1), (8, 8)])
def test_a_thumbnail_shows_photo_hole_exemplars_and_results(count: int, exemplars: int) -> None:
    drawn = thumbnails.compose(scene(count, exemplars))
    assert drawn.size == thumbnails.SIZE
    assert share(drawn, (255, 0, 0)) > 0.4  # results
    assert share(drawn, (0, 255, 0)) > 0.005 * min(count, exemplars)
    assert share(drawn, (0, 0, 255)) > 0.02  # photo
    assert share(drawn, (150, 150, 255)) > 0.002  # holes
    no_hole = scene(count, exemplars)
    no_hole.holes[0].paste(0, (0, 0, 512, 384))
    assert share(thumbnails.compose(no_hole), (150, 150, 255)) == 0


def test_a_hole_has_a_veil_and_a_line_around_it_and_nothing_else_changes() -> None:
    photo, hole = Image.new("RGB", (60, 40), "blue"), hole_at((20, 10, 40, 30), (60, 40))
    shown = show_hole(photo, hole)
    assert shown.getpixel((30, 20)) == (150, 150, 255)
    assert shown.getpixel((30, 9)) == (255, 255, 255) and shown.getpixel((30, 7)) == (0, 0, 0)
    assert shown.getpixel((30, 5)) == shown.getpixel((2, 2)) == (0, 0, 255)


@pytest.mark.parametrize("box", [(0, 0, 50, 40), (300, 200, 400, 290), (470, 350, 511, 383)])
@pytest.mark.parametrize("cell", [(320, 360), (156, 178), (238, 100)])
def test_a_view_holds_the_hole_and_keeps_its_shape(
    box: tuple[int, int, int, int], cell: tuple[int, int]
) -> None:
    hole = hole_at(box)
    view = view_around(hole, cell, share=0.5, zoom=1.5)
    assert 0 <= view.left < view.right <= 1 and 0 <= view.top < view.bottom <= 1
    width, height = (view.right - view.left) * 512, (view.bottom - view.top) * 384
    assert width / height == pytest.approx(cell[0] / cell[1])
    whole, seen = bounding_box(hole), bounding_box(view.of(hole, cell))
    shown = (seen[2] - seen[0]) * width / cell[0], (seen[3] - seen[1]) * height / cell[1]
    assert shown == pytest.approx((whole[2] - whole[0], whole[3] - whole[1]), abs=3)
    fit = min(512 / cell[0], 384 / cell[1])
    assert fit / 1.5 - 1e-6 <= width / cell[0] <= fit + 1e-6


def test_captions_stand_below_their_pictures() -> None:
    cells = [("one", Image.new("RGB", (50, 50), "red")), ("", Image.new("RGB", (90, 30), "red"))]
    drawn = np.asarray(captioned([cells], (100, 80)))
    red = (drawn == (255, 0, 0)).all(-1)
    assert red[:, :112].sum() == 80 * 80 and red[:, 112:].sum() == 100 * 33
    below = drawn[int(red.any(1).nonzero()[0].max()) + 1 :]
    assert (below[:, :112] < 128).any() and not (below[:, 116:] < 128).any()


# ---- graphs -------------------------------------------------------------------------------------


def test_only_what_a_tap_needs_is_run() -> None:
    prompt = {
        "a": {"class_type": "Load", "inputs": {"file": "x"}},
        "b": {"class_type": "Blur", "inputs": {"image": ["a", 0]}},
        "c": {"class_type": "Save", "inputs": {"images": ["b", 0]}},
    }

    class Host:
        def run(self, prompt: dict[str, Any]) -> Any:
            self.ran = prompt
            return type("Run", (), {"error": None})

        def images(self, run: object, name: str) -> list[str]:
            return [name]

    host, tapped = Host(), Tapped(prompt)
    name = tapped.image(["a", 0])
    assert tapped.image(["a", 0]) == name
    assert tapped.run(host) == {name: [name]}  # pyright: ignore[reportArgumentType]
    assert set(host.ran) == {"a", name}
    assert upstream(prompt, "c") == ["a", "b", "c"]


def foreign(kind: str, **inputs: Any) -> dict[str, Any]:
    return {
        "0": {"class_type": "PBEExampleInputs", "inputs": {"scene": "dune"}},
        "1": {"class_type": "Loader", "inputs": {"name": "weights"}},
        "2": {"class_type": kind, "inputs": {"model": ["1", 0], "image": ["0", 0], **inputs}},
        "3": {"class_type": "End", "inputs": {"it": ["2", 0]}},
    }


def test_a_missing_model_has_a_stand_in_that_does_not_need_it() -> None:
    prompt = foreign("ImageUpscaleWithModel")
    assert thumbnails._replace_user_of(prompt, "weights") == "ImageUpscaleWithModel"
    assert prompt["2"]["class_type"] == "ImageScaleBy" and upstream(prompt, "3") == ["0", "2", "3"]
    prompt = foreign("SAM3_Detect")
    assert thumbnails._replace_user_of(prompt, "weights") == "SAM3_Detect"
    assert prompt["3"]["inputs"] == {"it": ["0", 1]} and upstream(prompt, "3") == ["0", "3"]
    with pytest.raises(GraphError, match="weights, and there is no stand-in"):
        thumbnails._replace_user_of(foreign("Unknown"), "weights")


# ---- figures ------------------------------------------------------------------------------------

ROW = {"pairs": 256, "interval_95": [0.324, 0.471], "retrieval": 0.41, "retrieval_grey": 0.3,
       "likeness": 0.7, "psnr": 12.25, "seam": 1.0, "sharpness": 0.5, "outside": 0.0}  # fmt: skip


def test_the_table_has_a_row_for_each_of_the_evaluation() -> None:
    names = ("similarity 0", "similarity 3", "shuffled, similarity 3")
    rows = [{**ROW, "name": name} for name in names]
    rows.append({**ROW, "name": "the photo itself", "psnr": None})
    text = figures.table({"split": "val", "steps": 20, "sampler": "dpmpp_2m", "rows": rows})
    said, _, head, line, *found = text.splitlines()
    assert said == "256 pairs of `val`, 20 steps of `dpmpp_2m`:"
    assert {row.count("|") for row in (head, line, *found)} == {10}
    figures_of_one = "| 41.0 % | 32.4 to 47.1 % | 30.0 % | 0.700 | 12.25 | 1.00 | 0.50 | 0 |"
    assert found[1] == f"| similarity 3 {figures_of_one}"
    assert found[0].startswith("| similarity 0 (exemplar not seen) |")
    assert found[2].startswith("| shuffled exemplars, similarity 3 |")
    assert found[3].startswith("| the photo itself: the best") and "| 0.700 |  | 1.00 |" in found[3]


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n", encoding="utf-8")
    assert figures.write_between(path, "new") and not figures.write_between(path, "new")
    expected = f"before\n{figures.BEGIN}\n\nnew\n\n{figures.END}\nafter\n"
    assert path.read_text(encoding="utf-8") == expected
    for text in ("", figures.BEGIN, f"{figures.END}{figures.BEGIN}", expected + expected):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="once and in this order"):
            figures.write_between(path, "new")
        assert path.read_text(encoding="utf-8") == text


def test_the_page_has_the_markers() -> None:
    text = figures.PAGE.read_text(encoding="utf-8")
    _, _, rest = text.partition(f"{figures.BEGIN}\n")
    assert "| similarity 3 |" in rest.partition(f"{figures.END}\n")[0]


# ---- the command --------------------------------------------------------------------------------


def test_what_is_missing_is_one_line_that_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_host", lambda: None)
    assert command.main(["thumbnails", "help", "page", "figures"]) == 0
    hosted, table = capsys.readouterr().out.splitlines()
    assert hosted == f"left out: thumbnails, help and page; {HOW_TO_GET_IT}"
    assert table.startswith("left out: the table of figures; give DATA=FOLDER")


def test_a_missing_browser_leaves_out_its_pictures_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_browser", lambda: "no browser: get one")
    command._take(None, command._shots(["page", "help"]), command.Report())  # pyright: ignore[reportArgumentType]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("left out: comfyui.jpg, ") and line.endswith("; no browser: get one")
    assert "PBELoader.jpg" in line and "PBEStitch.jpg" not in line


def test_bad_data_fails_with_the_commands_own_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = figures.PAGE.read_bytes()
    assert command.main(["figures", "--data", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("failed: the model could not be evaluated: ") and str(tmp_path) in line
    assert figures.PAGE.read_bytes() == before


def test_an_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["thumbs"])
    assert ended.value.code == 2 and "there is no kind 'thumbs'" in capsys.readouterr().err


@pytest.mark.host
@pytest.mark.slow
def test_a_thumbnail_made_now_is_the_one_that_is_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a host of its own: the pack's name does not matter, the pictures in it do."""
    found = find_host()
    if found is None:
        pytest.skip(HOW_TO_GET_IT)
    for suffix in (".json", ".jpg"):
        shutil.copy(thumbnails.FOLDER / f"segment_with_model{suffix}", tmp_path)
    monkeypatch.setattr(thumbnails, "FOLDER", tmp_path)
    monkeypatch.setattr("docs.pictures.report.ROOT", tmp_path)
    thumbnail = tmp_path / "segment_with_model.jpg"
    before, marks = np.asarray(Image.open(thumbnail)), read_marks(thumbnail)
    assert command.main(["thumbnails"]) == 0
    assert str(thumbnail.relative_to(tmp_path)) in capsys.readouterr().out
    assert read_marks(thumbnail) == marks
    after = np.asarray(Image.open(thumbnail))
    assert np.abs(before.astype(int) - after).mean() < 2, "run `make pictures`"
