"""Files that want to run code, fill the memory, or pass for a model.

As a program: tries every file given, and prints what came of it as JSON, a line a file.
"""

import contextlib
import io
import json
import os
import pickle
import re
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import save_file

from pbe_model import V1
from pbe_model.checkpoint import state_dict
from pbe_model.cli import main
from pbe_model.saving import save_diffusers, save_model

if __name__ != "__main__":
    from .small import small_model


class Command:
    """Pickles as a call of `os.system`, the classic attack."""

    def __init__(self, marker: Path) -> None:
        self.command = f"touch {marker}"

    def __reduce__(self):
        return os.system, (self.command,)


def header(path: Path, text: str, data: bytes = b"", length: int | None = None) -> None:
    """A safetensors file with this header, whatever it says."""
    raw = text.encode()
    start = struct.pack("<Q", len(raw) if length is None else length)
    path.write_bytes(start + raw + data)


def entry(begin: int, end: int, *shape: int) -> dict:
    """What a safetensors header says of a float32 tensor."""
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


def command(folder: Path) -> Path:
    path = folder / "command.ckpt"
    torch.save(Command(folder / "owned"), path)
    return path


def wrong_magic(folder: Path) -> Path:
    path = folder / "magic.safetensors"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    return path


def truncated(folder: Path) -> Path:
    path = folder / "cut.safetensors"
    save_model(path, small_model())
    path.write_bytes(path.read_bytes()[:-1])
    return path


def long_header(folder: Path) -> Path:
    path = folder / "long.safetensors"
    header(path, "{}", length=10**12)
    return path


def overlapping(folder: Path) -> Path:
    path = folder / "overlap.safetensors"
    header(path, json.dumps({"a": entry(0, 8, 2), "b": entry(4, 12, 2)}), bytes(12))
    return path


def negative(folder: Path) -> Path:
    path = folder / "negative.safetensors"
    header(path, json.dumps({"a": entry(0, 8, -2)}), bytes(8))
    return path


def duplicate(folder: Path) -> Path:
    path = folder / "twice.safetensors"
    one = json.dumps(entry(0, 8, 2))
    header(path, f'{{"a": {one}, "a": {one}}}', bytes(8))
    return path


def not_a_number(folder: Path) -> Path:
    path = folder / "nan.safetensors"
    weights = {name: tensor.clone() for name, tensor in state_dict(small_model()).items()}
    weights["proj_out.weight"][3, 5] = float("nan")
    save_file(weights, path)
    return path


def many_tensors(folder: Path) -> Path:
    path = folder / "many.safetensors"
    one = json.dumps(entry(0, 0, 0))
    header(path, "{" + ",".join(f'"{i}":{one}' for i in range(10**6)) + "}")
    return path


def many_layers(folder: Path) -> Path:
    path = folder / "layers.safetensors"
    config = V1.to_dict()
    config["exemplar"]["num_layers"] = 60_000  # of 16 tensors each
    save_file({"a": torch.zeros(1)}, path, {"pbe_config": json.dumps(config)})
    return path


def zip_bomb(folder: Path) -> Path:
    """Three megabytes that unpack to three gigabytes of pickle."""
    path, packer = folder / "bomb.ckpt", zlib.compressobj(9, zlib.DEFLATED, -15)
    start = b"\x80\x02"
    # The pieces repeat, so that making the bomb does not take as long as its going off.
    packed = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = zlib.compressobj(9, zlib.DEFLATED, -15)
    lists = piece.compress(b"]" * 2**20) + piece.flush(zlib.Z_FULL_FLUSH)
    packed += lists * 3000 + b"\x03\x00"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("archive/data.pkl")
        archive.writestr(info, packed)
        archive.writestr("archive/version", "3\n")
        info.compress_type = zipfile.ZIP_DEFLATED  # written into the directory at the end
        info.file_size = 3000 * 2**20 + len(start)
    return path


def link(folder: Path) -> Path:
    path = folder / "linked"
    save_diffusers(path, small_model())
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "elsewhere.safetensors")
    weights.symlink_to(folder / "elsewhere.safetensors")
    return path


def endless_link(folder: Path) -> Path:
    path = folder / "endless"
    save_diffusers(path, small_model())
    config = path / "vae" / "config.json"
    config.unlink()
    config.symlink_to("/dev/zero")
    return path


def other_model(folder: Path) -> Path:
    path = folder / "sdxl.safetensors"
    weights = state_dict(small_model(), ["unet", "vae"])
    first = "model.diffusion_model.input_blocks.0.0.weight"
    text = {"conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": torch.zeros(8)}
    save_file({**weights, **text, first: weights[first][:, :4].contiguous()}, path)
    return path


def memo_bomb(folder: Path) -> Path:
    """Ten bytes that make the unpickler's table of a billion rows."""
    path = folder / "memo.ckpt"
    program = b"\x80\x02}r" + struct.pack("<I", 10**9) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
    return path


def expanded(folder: Path) -> Path:
    """A number that poses as a tensor of four terabytes."""
    path = folder / "expanded.ckpt"
    weights = state_dict(small_model())
    torch.save({**weights, "proj_out.weight": torch.zeros(1).expand(10**12)}, path)
    return path


def plain_pickle(folder: Path) -> Path:
    path = folder / "plain.ckpt"
    path.write_bytes(pickle.dumps({"a": Command(folder / "owned")}))
    return path


FILES: dict[Callable[[Path], Path], str] = {
    command: "foreign code (posix.system), which was not run",
    plain_pickle: "cannot be read as a torch checkpoint",
    wrong_magic: "its header claims",
    truncated: "incomplete",
    long_header: "its header claims 1,000,000,000,000 bytes",
    overlapping: "invalid offset",
    negative: "-2",
    duplicate: "'a' stands in its header twice",
    not_a_number: "proj_out.weight holds NaN",
    many_tensors: "its header has",
    many_layers: "num_layers is 60000",
    zip_bomb: "a record is not what the directory says",
    memo_bomb: "remembers more than",
    expanded: "claims (1000000000000,) values",
    link: "is a link that leads out of the folder",
    endless_link: "has no vae/config.json",
    other_model: "unexpected conditioner",
}
"""What makes a file, and what the sentence about it has to say."""


def peak_memory() -> int:
    """Bytes that this process has had at most; of its parent's, as `getrusage` counts, none."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    # What is imported with the first model is no fault of a file's.
    import_module("transformers.models.clip.modeling_clip")
    for name in sys.argv[1:]:
        said, began = io.StringIO(), time.process_time()
        out = Path(name).parent / "converted.safetensors"
        with contextlib.redirect_stderr(said):
            code = main(["convert", name, str(out), "--to", "safetensors"])
        print(
            json.dumps(
                {
                    "code": code,
                    "said": said.getvalue(),
                    "seconds": time.process_time() - began,
                    "peak": peak_memory(),
                    "written": out.exists(),
                }
            )
        )
