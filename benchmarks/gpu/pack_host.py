"""Pack what the part `host` needs of a ComfyUI into one file, for a machine without network.

    python -m benchmarks.gpu.pack_host --comfyui ~/ComfyUI --wheels wheels --out host.tar.gz

Carried are the server's own modules and built-in nodes. Its page, its templates, models and the
nodes of paid services stay behind. The wheels, made for the other machine's Python, are unpacked
beside it; of `comfy_kitchen` without its compiled kernels (58 MB; it has the same in torch), and
PyAV (35 MB) has a stand-in. The command says how large the file is.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pbe_model.atomic import replacing

SERVER, SITE = "comfyui", "site"
"""Folders of the file: ComfyUI, and the packages that it imports."""

LEFT_OUT = {
    "blueprints", "comfy_api_nodes", "custom_nodes", "input", "models", "output", "script_examples",
    "temp", "tests", "tests-unit", "user",
}  # fmt: skip
KERNELS = "comfy_kitchen/backends/*/*.so"
PYAV = '''"""Stands in for PyAV: whoever imports it may, and no video is read."""
import sys
from unittest.mock import MagicMock

for _name in ("", ".codec", ".container", ".subtitles", ".subtitles.stream", ".video",
              ".video.reformatter"):
    sys.modules[f"av{_name}"] = MagicMock()
'''


def main() -> None:
    """Pack a host."""
    parser = argparse.ArgumentParser(description="Pack a ComfyUI for `--host`.")
    add = parser.add_argument
    add("--comfyui", type=Path, required=True, metavar="DIR", help="a checkout")
    add("--wheels", type=Path, metavar="DIR", help="what the other machine lacks [nothing]")
    add("--out", type=Path, required=True, metavar="FILE", help="ends in .tar.gz")
    args = parser.parse_args()
    if not (args.comfyui / "main.py").is_file():
        parser.error(f"{args.comfyui} has no main.py: give a checkout of ComfyUI")
    pack(args.comfyui, args.wheels, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


def pack(comfyui: Path, wheels: Path | None, out: Path) -> None:
    """Write the file.

    Args:
        comfyui: A checkout.
        wheels: Folder of the packages that it needs and the other machine lacks.
        out: The file.
    """
    with replacing(out) as part, tarfile.open(part, "w:gz") as archive:
        for path in _server(comfyui):
            archive.add(path, f"{SERVER}/{path.relative_to(comfyui)}")
        if wheels is None:
            return
        stand_in = {} if list(wheels.glob("av-*.whl")) else {"av.py": PYAV.encode()}
        for name, content in (*stand_in.items(), *_packages(wheels)):
            entry = tarfile.TarInfo(f"{SITE}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def unpack(file: Path, folder: Path) -> None:
    """Put `SERVER`, and `SITE` if there were wheels, into a folder."""
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")


def _server(comfyui: Path) -> Iterator[Path]:
    """The files of its modules."""
    for top in sorted(comfyui.iterdir()):
        if top.suffix in (".py", ".ini") or top.name == "requirements.txt":
            yield top
        elif top.is_dir() and top.name not in LEFT_OUT and not top.name.startswith("."):
            inside = [path for path in sorted(top.rglob("*")) if path.is_file()]
            if any(path.suffix == ".py" for path in inside):
                yield from (path for path in inside if "__pycache__" not in path.parts)


def _packages(wheels: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files in wheels."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not name.endswith("/") and not PurePosixPath(name).match(KERNELS):
                    yield name, archive.read(name)


if __name__ == "__main__":
    main()
