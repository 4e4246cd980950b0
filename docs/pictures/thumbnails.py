"""Thumbnails of the example workflows: what a graph loads, what it gives.

Each is rendered from a run of the very graph, at the seeds in it: the photo with its holes, the
exemplars, the result. Nothing here knows a workflow by name. What a graph paints is found from its
end: the pictures that it saves, the nodes before that which take a photo with a mask, and the
encoders before that which take exemplars.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw

from tests.nodes.host import Host, Prompt

from .drawing import (
    Size,
    contained,
    show_hole,
    to_hole,
    to_picture,
    view_around,
)
from .hosting import ROOT, GraphError, Link, Tapped, is_link, load_prompt, read_workflow, upstream
from .jpeg import write_jpeg
from .marks import SCENE_NODE, marks_of_graph
from .report import Report

FOLDER = ROOT / "example_workflows"
SIZE = (480, 360)

_PHOTO_AND_MASK = {
    "PBEInpaintSampler": ("image", "mask"),
    "PBECrop": ("image", "mask"),
    "InpaintModelConditioning": ("pixels", "mask"),
}
"""Nodes that are told what to repaint, and the inputs that say it."""

_SIDE = 156
"""Width of the column of photo and exemplars."""
_GAP = 4
_INSET = 52
_MOST_COLUMNS = 3
_BACKGROUND = "#1d1d1d"


@dataclass(frozen=True)
class Scene:
    """What a run of a graph gave.

    Attributes:
        photos: as loaded; one, or one for each result.
        holes: one, or one for each result; white where it is repainted.
        exemplars: any number.
        results: at least one.
    """

    photos: list[Image.Image]
    holes: list[Image.Image]
    exemplars: list[Image.Image]
    results: list[Image.Image]


def workflows() -> list[Path]:
    """The graphs that need a thumbnail, which lies beside each with the suffix .jpg."""
    return sorted(FOLDER.glob("*.json"))


def make(host: Host, comfyui: Path, report: Report) -> None:
    """Make the thumbnails of all workflows.

    Args:
        host: runs them.
        comfyui: the user's checkout, whose models are used where a graph needs foreign ones.
        report: is told what was made.
    """
    for path in workflows():
        workflow = read_workflow(path)
        prompt = load_prompt(host, workflow)
        marks = marks_of_graph(workflow)
        for model in _foreign_models(workflow):
            if not _lend(host, comfyui, model):
                node = _replace_user_of(prompt, model["name"])
                marks["without"] = model["name"]
                report.note(
                    f"{path.stem} was drawn with a stand-in for {node}: put {model['url']} into "
                    f"{comfyui}/models/{model['directory']} for the real one"
                )
        thumbnail = path.with_suffix(".jpg")
        try:
            scene = run_graph(host, prompt)
        except GraphError as error:
            report.failed(f"{path.stem} does not run: {error}")
            continue
        report.made(thumbnail, write_jpeg(thumbnail, compose(scene), marks))


# ---- what a graph paints ------------------------------------------------------------------------


def run_graph(host: Host, prompt: Prompt) -> Scene:
    """Run a graph, and fetch what it loads and gives.

    Raises:
        GraphError: it fails, or does not paint a hole.
    """
    tapped = Tapped(prompt)
    result = _final_link(prompt)
    before = upstream(prompt, result[0])
    holes = [_links(prompt, name) for name in before if _type(prompt, name) in _PHOTO_AND_MASK]
    if not holes:
        raise GraphError("nothing before the picture that it saves takes a photo with a mask")
    encoders = [name for name in before if _type(prompt, name) == "PBEExemplarEncoder"]
    exemplars = [tapped.image(prompt[name]["inputs"]["exemplar"]) for name in encoders]
    photo, results = tapped.image(holes[0][0]), tapped.image(result)
    masks = [tapped.mask(mask) for _, mask in holes]
    pixels = tapped.run(host)
    photos = [to_picture(picture) for picture in pixels[photo]]
    return Scene(
        photos=photos,
        holes=_merged([[to_hole(mask) for mask in pixels[name]] for name in masks], photos[0].size),
        exemplars=[to_picture(one) for name in dict.fromkeys(exemplars) for one in pixels[name]],
        results=[to_picture(picture) for picture in pixels[results]],
    )


def _final_link(prompt: Prompt) -> Link:
    """Where the pictures come from that a graph saves, or else shows last."""
    for kind in ("SaveImage", "PreviewImage"):
        for node in reversed(prompt.values()):
            if node["class_type"] == kind:
                return node["inputs"]["images"]
    raise GraphError("it neither saves nor shows a picture")


def _links(prompt: Prompt, name: str) -> tuple[Link, Link]:
    image, mask = _PHOTO_AND_MASK[_type(prompt, name)]
    return prompt[name]["inputs"][image], prompt[name]["inputs"][mask]


def _type(prompt: Prompt, name: str) -> str:
    return prompt[name]["class_type"]


def _merged(holes: list[list[Image.Image]], size: Size) -> list[Image.Image]:
    """The holes of nodes that paint one after the other, together.

    Masks of another shape belong to a crop of the photo; of another size, they are stretched.
    """
    merged = [hole.resize(size) for hole in holes[0]]
    for more in holes[1:]:
        if more[0].size == holes[0][0].size and len(more) == len(merged):
            pairs = zip(merged, more, strict=True)
            merged = [ImageChops.lighter(one, other.resize(size)) for one, other in pairs]
    return merged


# ---- models that do not come with the pack ------------------------------------------------------


def _foreign_models(workflow: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Name, address and folder of the files that the user has to fetch."""
    for node in workflow["nodes"]:
        yield from node.get("properties", {}).get("models", [])


def _lend(host: Host, comfyui: Path, model: dict[str, str]) -> bool:
    """Give the host the user's file, if there is one."""
    folder, name = model["directory"], model["name"]
    file, lent = comfyui / "models" / folder / name, host.base / "models" / folder / name
    if not file.is_file():
        return False
    lent.parent.mkdir(parents=True, exist_ok=True)
    if not lent.exists():
        lent.symlink_to(file.resolve())
    return True


def _replace_user_of(prompt: Prompt, file: str) -> str:
    """Put a stand-in into a prompt where it needs a file that is missing.

    Returns:
        The type of the node that was replaced.

    Raises:
        GraphError: there is no stand-in for what uses the file.
    """
    loaders = {name for name, node in prompt.items() if file in node["inputs"].values()}
    for name, node in prompt.items():
        if loaders.isdisjoint(upstream(prompt, name)):
            continue
        inputs = node["inputs"]
        if node["class_type"] == "ImageUpscaleWithModel":
            scaling = {"upscale_method": "lanczos", "scale_by": 4.0, "image": inputs["image"]}
            prompt[name] = {"class_type": "ImageScaleBy", "inputs": scaling}
            return "ImageUpscaleWithModel"
        if node["class_type"] == "SAM3_Detect":
            scene = inputs["image"][0]
            if prompt[scene]["class_type"] == SCENE_NODE:
                prompt[name] = prompt[scene]
                _redirect(prompt, [name, 0], [scene, 1])
                return "SAM3_Detect"
    raise GraphError(f"it needs {file}, and there is no stand-in for the nodes that use it")


def _redirect(prompt: Prompt, old: Link, new: Link) -> None:
    for node in prompt.values():
        inputs = node["inputs"]
        inputs.update(
            {key: new for key, value in inputs.items() if is_link(value) and value == old}
        )


# ---- drawing ------------------------------------------------------------------------------------


def compose(scene: Scene) -> Image.Image:
    """A thumbnail: what was given, with its hole, and what came of it."""
    canvas = Image.new("RGB", SIZE, _BACKGROUND)
    if len(scene.results) == 1:
        _draw_one(canvas, scene)
    elif len(scene.results) <= _MOST_COLUMNS:
        _draw_columns(canvas, scene)
    else:
        _draw_grid(canvas, scene)
    return canvas


def _draw_one(canvas: Image.Image, scene: Scene) -> None:
    """What was given in a column, the result beside it, closer."""
    marked = _marked(scene, 0, (_SIDE, SIZE[1] * 2 // 5))
    canvas.paste(marked, ((_SIDE - marked.width) // 2, 0))
    top = marked.height + _GAP
    height = (SIZE[1] - top + _GAP) // max(len(scene.exemplars), 1)
    for number, exemplar in enumerate(scene.exemplars):
        place = (0, top + number * height, _SIDE, top + (number + 1) * height - _GAP)
        _paste_centred(canvas, exemplar, place)
    cell = SIZE[0] - _SIDE - _GAP, SIZE[1]
    view = view_around(scene.holes[0], cell, share=0.5, zoom=1.5)
    canvas.paste(view.of(scene.results[0], cell), (_SIDE + _GAP, 0))


def _draw_columns(canvas: Image.Image, scene: Scene) -> None:
    """A column for each result: its photo with its hole and exemplar above, itself below."""
    count = len(scene.results)
    cell = (SIZE[0] - (count - 1) * _GAP) // count, (SIZE[1] - _GAP) // 2
    for number, result in enumerate(scene.results):
        left = number * (cell[0] + _GAP)
        hole = _one_of(scene.holes, number)
        view = view_around(hole, cell, share=0.7, zoom=1.5)
        given = view.of(_one_of(scene.photos, number), cell)
        canvas.paste(show_hole(given, view.of(hole, cell)), (left, 0))
        canvas.paste(view.of(result, cell), (left, cell[1] + _GAP))
        if number < len(scene.exemplars):
            _paste_framed(canvas, contained(scene.exemplars[number], (_INSET, _INSET)), (left, 0))


def _draw_grid(canvas: Image.Image, scene: Scene) -> None:
    """The results, each with its photo and hole in one corner and its exemplar in another."""
    columns = math.ceil(math.sqrt(len(scene.results)))
    rows = math.ceil(len(scene.results) / columns)
    cell = (SIZE[0] - (columns - 1) * _GAP) // columns, (SIZE[1] - (rows - 1) * _GAP) // rows
    for number, result in enumerate(scene.results):
        row, column = divmod(number, columns)
        left, top = column * (cell[0] + _GAP), row * (cell[1] + _GAP)
        view = view_around(_one_of(scene.holes, number), cell, share=0.5, zoom=1.5)
        canvas.paste(view.of(result, cell), (left, top))
        marked = _marked(scene, number, (cell[0] // 3, cell[1] // 3))
        _paste_framed(canvas, marked, (left, top))
        if number < len(scene.exemplars):
            inset = contained(scene.exemplars[number], (cell[0] // 3, cell[1] // 3))
            _paste_framed(canvas, inset, (left + cell[0] - inset.width, top))


def _marked(scene: Scene, number: int, size: Size) -> Image.Image:
    """The whole photo of a result with its hole, in at most `size`."""
    photo = contained(_one_of(scene.photos, number), size)
    return show_hole(photo, _one_of(scene.holes, number).resize(photo.size))


def _one_of(pictures: list[Image.Image], number: int) -> Image.Image:
    """The picture of a result, where one may serve them all."""
    return pictures[number % len(pictures)]


def _paste_framed(canvas: Image.Image, picture: Image.Image, place: tuple[int, int]) -> None:
    left, top = place
    frame = (left - _GAP, top - _GAP, left + picture.width + 3, top + picture.height + 3)
    ImageDraw.Draw(canvas).rectangle(frame, _BACKGROUND)
    canvas.paste(picture, place)


def _paste_centred(
    canvas: Image.Image, picture: Image.Image, place: tuple[int, int, int, int]
) -> None:
    left, top, right, bottom = place
    fitted = contained(picture, (right - left, bottom - top))
    canvas.paste(fitted, ((left + right - fitted.width) // 2, (top + bottom - fitted.height) // 2))
