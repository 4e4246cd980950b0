"""One file of the demo set for a machine without network: `pbe-train prepare demo --pack FILE`."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from pbe_model.atomic import replacing

SIDE = 512  # short side of a packed background
_PAIRS = ("val", "seen")


def pack(out: Path, path: Path) -> None:
    """Write the pictures and pairs of a demo set, not its training composites, into a .tar file.

    The layout is that of `out`. Cut-outs become WebP, with their transparency exact, and
    backgrounds smaller JPEGs, so the file has half the size; objects.jsonl names them. The same
    set gives the same bytes.

    Args:
        out: a folder that `prepare_demo` made.
        path: the file to write.

    Raises:
        ValueError: it cannot be written.
    """
    lines = (out / "objects.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    with replacing(path) as part, tarfile.open(part, "w") as archive:
        for entry in tqdm(entries, desc="pack"):
            source = out / entry["file"]
            if entry["kind"] == "cutout":
                entry["file"] = str(Path(entry["file"]).with_suffix(".webp"))
            _add(archive, entry["file"], _encoded(source, entry["kind"]))
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        _add(archive, "objects.jsonl", text.encode())
        for name in _PAIRS:
            pairs = (out / name / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) for line in pairs]
            files = [record[key] for record in records for key in ("photo", "exemplar")]
            for file in [f"{name}/pairs.jsonl", f"{name}/boxes.jsonl", *files]:
                _add(archive, file, (out / file).read_bytes())


def _encoded(path: Path, kind: str) -> bytes:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        if kind == "cutout":
            image.save(buffer, format="WEBP", quality=90, alpha_quality=100)
        else:
            scale = min(SIDE / min(image.size), 1.0)
            size = round(image.width * scale), round(image.height * scale)
            small = image.resize(size, Image.Resampling.BOX)
            small.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no times and no owners: the same pictures, the same bytes
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
