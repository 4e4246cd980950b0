"""Any file: it is read, or refused in a sentence, soon and in little memory.

Files that are right are damaged at random (`mutants`); the reader's own tests say what becomes of
the damage that people meet, and `tests/pbe_model/hostile` holds what was made to do harm.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pbe_model.checkpoints.exemplar_file import EncodedExemplar, load_exemplar, save_exemplar
from pbe_model.checkpoints.load import load_model, read
from pbe_model.checkpoints.lora import apply_lora, save_lora
from pbe_model.checkpoints.save import save_model, save_official
from pbe_model.cli.batch import read_edits
from pbe_model.image_io import read_exemplar, read_image, read_mask, read_note
from pbe_model.untrusted import printable
from training import checkpoints as state
from training.data.decode import decode_photo, photo_size
from training.data.index import BoxIndex
from training.evaluation.pairs import load_pairs
from training.prepare.annotations import FORMATS, Unusable, open_reader

from ..pbe_model.small import SMALL, small_model, uniform
from ..training.hostile.files import index_folder
from .examples import bounded, examples, refusal
from .mutants import mutants
from .test_config import JSON


@contextmanager
def refused(kind: type[Exception] = ValueError) -> Iterator[None]:
    """What happens inside succeeds, or fails as the reader says that it may."""
    try:
        with bounded():
            yield
    except kind as error:
        refusal(error)


# ---- pictures ----------------------------------------------------------------------------------

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P", "RGB"),
    "PPM": ("1", "L", "RGB"),
    "ICO": ("RGBA",),
    "TGA": ("L", "RGB", "RGBA"),
}


@cache
def picture(format: str, mode: str, extra: int) -> bytes:
    """A small picture with side information: EXIF that turns it, text, a profile, packed rows."""
    rng = np.random.default_rng(7)
    if mode in ("I", "F", "I;16"):
        values = rng.integers(0, 2**16, (12, 16)).astype({"I": "i4", "F": "f4"}.get(mode, "u2"))
        made = Image.fromarray(values)
    else:
        made = Image.fromarray(rng.integers(0, 256, (12, 16, 4), np.uint8), "RGBA").convert(mode)
    options: dict[str, Any] = {}
    exif = Image.Exif()
    exif[0x0112] = 6
    if extra == 1 and format in ("PNG", "JPEG", "WEBP", "TIFF"):
        options["exif"] = exif
    if extra == 2 and format == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("pbe", "a note", zip=True)
    if extra == 2 and format == "JPEG":
        options["progressive"] = True
    if extra == 2 and format == "TIFF":
        options["compression"] = "tiff_lzw"
    if extra == 3 and format == "PNG" and mode == "P":
        options["transparency"] = 3
    file = io.BytesIO()
    made.save(file, format, **options)
    return file.getvalue()


@st.composite
def damaged_pictures(draw: st.DrawFn) -> bytes:
    format = draw(st.sampled_from(sorted(MODES)))
    whole = picture(format, draw(st.sampled_from(MODES[format])), draw(st.integers(0, 3)))
    return whole if draw(st.integers(0, 19)) == 0 else draw(mutants(whole))


@examples(200)
@given(data=damaged_pictures())
def test_pictures(data: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.png")
        path.write_bytes(data)
        with refused():
            found = read_image(path)
            assert found.ndim == 3 and found.shape[2] == 3 and found.dtype == torch.float32
            assert found.min() >= 0 and found.max() <= 1
        with refused():
            found, mask = read_exemplar(path)
            assert mask is None or mask.shape == found.shape[:2]
        with refused():
            found = read_mask(path, (9, 11))
            assert found.shape == (9, 11) and found.min() >= 0 and found.max() <= 1
        read_note(path)
        size = None
        with refused(OSError):
            size = photo_size(path)
        with refused(OSError):
            photo = decode_photo(data)
            assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3
            assert size is not None, "the header was refused and the picture was not"


# ---- weights -----------------------------------------------------------------------------------


class Weights(NamedTuple):
    """A kind of file with weights: how one is written, and what reads it."""

    suffix: str
    write: Callable[[Path], object]
    load: Callable[[Path], object]


def _adapter(path: Path) -> None:
    name = "model.diffusion_model.middle_block.1.proj_in"
    width = SMALL.unet.model_channels * SMALL.unet.channel_mult[-1]
    down, up = uniform(2, width, seed=1), uniform(width, 2, seed=2)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    save_lora(path, tensors, SMALL)


def _run_state(path: Path) -> None:
    entries = {name: {"w": torch.arange(40.0)} for name in state.ENTRIES}
    state.write(path, {"step": 3, **entries})


def _adapt(path: Path) -> None:
    """An adapter changes a model as a whole or not at all."""
    model = MODEL()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        apply_lora(model, path)
    except ValueError:
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])
        raise
    model.load_state_dict(before)


MODEL = cache(small_model)
KINDS = {
    "model": Weights(".safetensors", lambda path: save_model(path, MODEL()), load_model),
    "official": Weights(".ckpt", lambda path: save_official(path, MODEL()), read),
    "pickle": Weights(
        ".bin",
        lambda path: torch.save(
            {"a.weight": torch.ones(9)}, path, _use_new_zipfile_serialization=False
        ),
        read,
    ),
    "adapter": Weights(".safetensors", _adapter, _adapt),
    "exemplar": Weights(
        ".safetensors",
        lambda path: save_exemplar(path, EncodedExemplar(torch.ones(1, 1, 8), torch.ones(1, 1, 8))),
        load_exemplar,
    ),
    "run": Weights(".pt", _run_state, state.load),
}


@cache
def weights(kind: str) -> bytes:
    """A file of this kind that is as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{KINDS[kind].suffix}")
        KINDS[kind].write(path)
        return path.read_bytes()


@st.composite
def damaged_weights(draw: st.DrawFn, kind: str) -> bytes:
    """Changes where names, types and sizes are: at the start, or in an archive's end."""
    whole = weights(kind)
    edge = draw(st.integers(1, 4000) | st.just(len(whole)))
    if draw(st.booleans()):
        return draw(mutants(whole[:edge])) + whole[edge:]
    return whole[:-edge] + draw(mutants(whole[-edge:]))


@examples(60)
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)))
def test_weights(data: st.DataObject, kind: str):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{KINDS[kind].suffix}")
        path.write_bytes(data.draw(damaged_weights(kind)))
        with refused():
            KINDS[kind].load(path)


# ---- annotations -------------------------------------------------------------------------------

COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 20},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 20},
    ],
    "categories": [{"id": 7, "name": "cup"}],
    "annotations": [
        {"image_id": 1, "category_id": 7, "bbox": [1, 2.5, 30, 10], "iscrowd": 0},
        {"image_id": 2, "bbox": [0, 0, 9, 9], "segmentation": [[0, 0, 9, 0, 9, 9]]},
    ],
}  # fmt: skip
VOC = (
    "<annotation><filename>a.png</filename><size><width>40</width><height>20</height></size>"
    "<object><name>cup</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>2</ymin>"
    "<xmax>30</xmax><ymax>18</ymax></bndbox></object></annotation>"
)
TABLE = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
    "IsDepiction,IsInside\na,xclick,/m/1,1,0.1,0.9,0.2,0.8,0,0,1,0,0\nb,x,/m/1,1,0,1,0,1,0,0,0,0,0\n"
)
LINES = (
    '{"image": "a.png", "box": [1, 2, 30, 18], "label": "cup", "size": [40, 20]}\n'
    '{"image": "b.png", "box": [0, 0, 9.5, "9"]}\n'
)
ANNOTATIONS: dict[str, tuple[str, str]] = {
    "coco": ("coco.json", json.dumps(COCO)),
    "voc": ("voc/a.xml", VOC),
    "yolo": ("labels/a.txt", "0 0.5 0.5 0.6 0.8\n1 0.1 0.1 0.9 0.1 0.9 0.8\n"),
    "openimages": ("boxes.csv", TABLE),
    "boxes": ("boxes.jsonl", LINES),
}
"""By the format: the name of a file and what it holds when it is right."""

PICTURE = picture("PNG", "RGB", 0)


@contextmanager
def collection() -> Iterator[Path]:
    """A folder with two photos in `images`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for photo in ("a.png", "b.png"):
            (folder / "images" / photo).write_bytes(PICTURE)
        yield folder


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def read_all(format: str, folder: Path, annotations: Path) -> None:
    """Every photo of a collection, each of which may be unusable by itself."""
    reader = open_reader(format, folder / "images", annotations)
    for entry in reader.entries():
        with refused(Unusable):
            for box in reader.read(entry).boxes:
                assert all(isinstance(number, (int, float)) for number in box[:4]), box


@examples(120)
@given(data=st.data(), format=st.sampled_from(sorted(ANNOTATIONS)))
def test_annotations(data: st.DataObject, format: str):
    assert format in FORMATS
    name, content = ANNOTATIONS[format]
    with collection() as folder, refused():
        path = put(folder / name, data.draw(mutants(content.encode())))
        read_all(format, folder, path.parent if format in ("voc", "yolo") else path)


@examples(60)
@given(data=st.data())
def test_coco_of_any_structure(data: st.DataObject):
    """JSON that is JSON, with an entry, a table or everything replaced."""
    value = json.loads(json.dumps(COCO))
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(JSON)
            break
    with collection() as folder, refused():
        read_all("coco", folder, put(folder / "coco.json", json.dumps(value).encode()))


@st.composite
def json_lines(draw: st.DrawFn, *right: dict[str, Any]) -> bytes:
    """Lines of objects with entries left out, added and replaced, or with damage."""
    lines = []
    for _ in range(draw(st.integers(1, 3))):
        entry = dict(draw(st.sampled_from(right)))
        for _ in range(draw(st.integers(0, 2))):
            name = draw(st.sampled_from(sorted(right[0])) | st.text(max_size=4))
            entry[name] = draw(JSON)
        lines.append(json.dumps(entry).encode())
    text = b"\n".join(lines)
    return draw(mutants(text)) if draw(st.booleans()) else text


BOX = {"image": "a.png", "box": [1, 2, 15, 11], "label": "cup", "size": [16, 12]}
PAIR = {"photo": "a.png", "exemplar": "b.png", "group": "g", "box": [1, 2, 15, 11], "id": "1"}
EDIT = {"image": "a.png", "mask": "b.png", "exemplar": "b.png", "out": "c.png", "seed": 3,
        "steps": 2, "num_images": 2, "similarity": 4.5, "region": "each", "fit": "pad"}  # fmt: skip


@examples(80)
@given(boxes=json_lines(BOX), pairs=json_lines(PAIR), lines=json_lines(EDIT))
def test_lines(boxes: bytes, pairs: bytes, lines: bytes):
    with collection() as folder:
        images = folder / "images"
        with refused():
            index = BoxIndex.open(put(folder / "boxes.jsonl", boxes), images)
            for number in range(index.num_boxes):
                index.box(number), index.label(number), index.photo(index.photo_of(number))
        put(images / "val" / "pairs.jsonl", pairs)
        with refused():
            load_pairs(images, 1)
        with refused():
            found, problems = read_edits(put(images / "edits.jsonl", lines), folder / "out", {}, {})
            for problem in problems.values():
                refusal(ValueError(printable(problem)))  # as it is reported
            assert all(edit.results for edit in found)


INDEX_FILES = ("index.json", "labels.json", "boxes.npy", "photos.npy", "paths.bin")


@examples(80)
@given(data=st.data(), name=st.sampled_from(INDEX_FILES))
def test_index_folders(data: st.DataObject, name: str):
    with tempfile.TemporaryDirectory() as folder:
        path = index_folder(Path(folder, "index"))
        file = path / name
        file.write_bytes(data.draw(mutants(file.read_bytes())))
        with refused():
            index = BoxIndex.open(path)
            for number in range(index.num_boxes):
                index.box(number), index.label(number), index.photo(index.photo_of(number))
