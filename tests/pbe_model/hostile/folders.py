"""Folders of diffusers whose configurations, weights or links are not what they should be."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pbe_model.checkpoints.save import save_diffusers

from ..small import small_model
from .archives import script
from .case import HUGE, TERMINAL, Case, Table
from .pickling import checkpoint, number, table
from .strangers import HTML, LFS
from .zipping import Record, archive, two_faced

_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
_INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
_NONE = "not describe a Paint by Example model"
_NO_TOWER = "no image tower|not an image tower|no weights in"
_ALL = ("inspect", "convert", "edit", "batch", "from_checkpoint", "train")
_SCHEDULE = "scheduler/scheduler_config.json"


@cache
def _model() -> dict[Path, bytes]:
    """The files of the small model's folder."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "model")
        save_diffusers(path, small_model())
        files = [file for file in path.rglob("*") if file.is_file()]
        return {file.relative_to(path): file.read_bytes() for file in files}


def _folder(says: str, change: Callable[[Path], object], passes: tuple[str, ...] = ()) -> Case:
    """A folder of the small model, changed."""

    def make(path: Path) -> None:
        for name, content in _model().items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        change(path)

    return Case(make, f"{says}|{_NO_TOWER}", passes)


def _instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Puts something in a file's place."""

    def change(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        make(path / name)

    return change


def _text(name: str, content: str | bytes, says: str = "is not valid JSON") -> Case:
    raw = content.encode() if isinstance(content, str) else content
    return _folder(says, _instead(name, lambda file: file.write_bytes(raw)))


def _stating(says: str, part: str, **entries: Any) -> Case:
    """Other entries in the configuration of a part."""

    def change(path: Path) -> None:
        file = path / (_SCHEDULE if part == "scheduler" else f"{part}/config.json")
        values = json.loads(file.read_text())
        file.write_text(json.dumps({**values, **entries}))

    return _folder(says, change)


def _index(says: str, *names: Any) -> Case:
    """Weights in shards of these names."""

    def change(path: Path) -> None:
        (path / _WEIGHTS).rename(path / "unet/shard.safetensors")
        (path / _INDEX).write_text(json.dumps({"weight_map": dict(enumerate(names))}))

    return _folder(says, change)


def _pickled(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Weights of the denoiser as `.bin`."""

    def change(path: Path) -> None:
        (path / _WEIGHTS).unlink()
        make(path / "unet/diffusion_pytorch_model.bin")

    return change


def _two_faced(file: Path) -> None:
    hidden = script()
    shown = archive(*(Record(f"a/{i}") for i in range(hidden.count(b"PK\1\2"))))
    file.write_bytes(two_faced(hidden, shown))


def _outside(path: Path) -> None:
    """The weights are a link to a file elsewhere."""
    (path / _WEIGHTS).rename(path.with_name(f"{path.name} elsewhere.safetensors"))
    (path / _WEIGHTS).symlink_to(path.with_name(f"{path.name} elsewhere.safetensors"))


def _stranger(dtype: torch.dtype) -> Callable[[Path], object]:
    from safetensors.torch import load_file, save_file

    def change(path: Path) -> None:
        weights = load_file(path / _WEIGHTS)
        save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, path / _WEIGHTS)

    return change


FILES: Table = {
    # ---- configurations that are none
    "deep": _text("unet/config.json", "[" * 400_000),
    "deep_objects": _text("vae/config.json", '{"a":' * 400_000),
    "deep_schedule": _text(_SCHEDULE, "[" * 400_000),
    "page": _text("unet/config.json", HTML),
    "pointer": _text("image_encoder/config.json", LFS),
    "empty": _text("unet/config.json", b""),
    "zeros": _text("unet/config.json", bytes(1_000)),
    "letters": _text("unet/config.json", b"\xff\xfe\xfd"),
    "digits": _text("unet/config.json", '{"a":' + "9" * 5_000 + "}"),
    "list": _text("unet/config.json", "[]", "holds no JSON object"),
    "large": _folder(
        "9,000,000 are|bytes, and",
        _instead("unet/config.json", lambda f: f.write_bytes(b" " * 9_000_000)),
    ),
    "pipe": _folder("has no unet/config.json", _instead("unet/config.json", os.mkfifo)),
    "device": _folder(
        "has no vae/config.json", _instead("vae/config.json", lambda f: f.symlink_to("/dev/zero"))
    ),
    "config_outside": _folder(
        "is a link that leads out",
        _instead("unet/config.json", lambda f: f.symlink_to("/etc/passwd")),
    ),
    # ---- numbers that are none
    "size_list": _stating(f"{_NONE}|resolution is", "unet", sample_size=[0] * 2_600_000).briefly(),
    "size_text": _stating(f"{_NONE}|resolution is", "unet", sample_size="a" * 7_000_000),
    "size_huge": _stating(f"{_NONE}|resolution is", "unet", sample_size=HUGE),
    "widths_huge": _stating(_NONE, "unet", block_out_channels=[1.5, HUGE]),
    "widths_float": _stating(f"{_NONE}|channel", "unet", block_out_channels=[1e-300, 1e300]),
    "widths_zero": _stating(_NONE, "unet", block_out_channels=[0, 0]),
    "widths_none": _stating(_NONE, "unet", block_out_channels=[]),
    "widths_lists": _stating(_NONE, "vae", block_out_channels=[[32], [64]]),
    "widths_table": _stating(_NONE, "vae", block_out_channels={"0": 32}),
    "widths_many": _stating(
        f"{_NONE}|levels", "unet", block_out_channels=[32] * 1_000_000
    ).briefly(),
    "levels_many": _stating(f"{_NONE}|levels", "unet", down_block_types=["CrossAttn"] * 400_000),
    "levels_numbers": _stating(_NONE, "unet", down_block_types=[1, 2]),
    "levels_text": _stating(f"{_NONE}|attention", "unet", down_block_types="CrossAttn"),
    "heads_list": _stating(f"{_NONE}|num_heads", "unet", attention_head_dim=[5, 10]),
    "heads_odd": _stating("is not divisible by num_heads", "unet", attention_head_dim=5),
    "blocks_list": _stating(f"{_NONE}|num_res_blocks", "unet", layers_per_block=[2, 2]),
    "blocks_many": _stating(f"{_NONE}|num_res_blocks", "unet", layers_per_block=10**9),
    "context_none": _stating(f"{_NONE}|context_dim", "unet", cross_attention_dim=None),
    "scale_huge": _stating(f"{_NONE}|scale_factor", "vae", scaling_factor=HUGE),
    "scale_text": _stating(f"{_NONE}|scale_factor", "vae", scaling_factor=TERMINAL),
    "scale_infinite": _stating(f"{_NONE}|scale_factor", "vae", scaling_factor=float("inf")),
    "layers_huge": _stating(f"{_NONE}|num_layers", "image_encoder", num_hidden_layers=HUGE),
    "layers_many": _stating(f"{_NONE}|layers", "image_encoder", num_hidden_layers=60_000),
    "layers_infinite": _stating(
        f"{_NONE}|num_layers", "image_encoder", num_hidden_layers=float("inf")
    ),
    "layers_list": _stating(f"{_NONE}|num_layers", "image_encoder", num_hidden_layers=[9]),
    "patch_zero": _stating(f"{_NONE}|patch_size", "image_encoder", patch_size=0),
    "prediction_list": _stating(f"{_NONE}|prediction", "scheduler", prediction_type=["epsilon"]),
    "prediction_text": _stating("prediction_type", "scheduler", prediction_type=TERMINAL * 100_000),
    "snr_text": _stating(
        f"{_NONE}|zero_terminal_snr", "scheduler", rescale_betas_zero_snr=TERMINAL * 9_999
    ),
    "snr_list": _stating(f"{_NONE}|zero_terminal_snr", "scheduler", rescale_betas_zero_snr=[1]),
    # ---- weights
    "weights_pipe": _folder("is missing|not a regular file", _instead(_WEIGHTS, os.mkfifo)),
    "weights_device": _folder(
        "is missing|not a regular file|leads out",
        _instead(_WEIGHTS, lambda f: f.symlink_to("/dev/zero")),
    ),
    "weights_folder": _folder("is missing", _instead(_WEIGHTS, Path.mkdir)),
    "weights_outside": _folder("is a link that leads out of the folder", _outside),
    "weights_loop": _folder(
        "no weights in|is missing", _instead(_WEIGHTS, lambda f: f.symlink_to(f.name))
    ),
    "weights_page": _folder(
        "it is an HTML page", _instead(_WEIGHTS, lambda f: f.write_bytes(HTML))
    ),
    "weights_int8": _folder("not a weight type", _stranger(torch.int8)),
    "weights_int16": _folder("not a weight type", _stranger(torch.int16)),
    "two_faced": _folder("its directory is not where", _pickled(_two_faced)),
    "pickle_list": _folder("of type list", _pickled(checkpoint(b"]"))),
    "pickle_of_nothing": _folder(
        "does not fit", _pickled(checkpoint(table(a=number(1)))), ("inspect", "train")
    ),
    "pickle_links": _folder("is missing|no weights", _pickled(lambda f: f.symlink_to("/dev/zero"))),
    # ---- shards
    "index_outside": _index("is missing", "../../secret.safetensors"),
    "index_absolute": _index("is missing", "/etc/passwd"),
    "index_many": _index(
        "shards|is missing", *(f"{i}/none.safetensors" for i in range(100_000))
    ).briefly(),
    "index_same": _index("shards", *(f"{i}/shard.safetensors" for i in range(100_000)))
    .briefly()
    ._replace(passes=_ALL),
    "index_parent": _index("is missing", ".."),
    "index_nothing": _index("is missing", ""),
    "index_long": _index("is missing|too long", "a" * 300 + ".safetensors"),
    "index_longer": _index("is missing|too long", "a" * 1_000_000),
    "index_escapes": _index(r"\\x1b\]0;owned\\x07", f"{TERMINAL}.safetensors"),
    "index_null": _index("is missing", "a\0b.safetensors"),
    "index_surrogate": _index("is missing", "\ud800.safetensors"),
    "index_number": _index("is missing|no weight_map", 10**300),
    "index_list": _index("is missing|no weight_map", ["shard.safetensors"]),
    "index_deep": _folder(
        "is not valid JSON",
        lambda path: (
            (path / _WEIGHTS).unlink(),
            (path / _INDEX).write_text('{"weight_map":' + "[" * 400_000),
        ),
    ),
    "index_text": _folder(
        "has no weight_map",
        lambda path: ((path / _WEIGHTS).unlink(), (path / _INDEX).write_text('{"weight_map":"a"}')),
    ),
}
