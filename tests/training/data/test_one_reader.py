"""Edits and training read every kind of picture alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pbe_model.image_io import read_image
from training.data.decode import decode_photo, photo_size

from ...picture_files import FILES, SIDE_INFORMATION

ALL = {**FILES, **SIDE_INFORMATION}


@pytest.mark.parametrize("name", ALL)
def test_both_readers_agree(name: str, tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(ALL[name])
    as_edited = (read_image(path).numpy() * 255).round().astype(int)
    as_trained = decode_photo(ALL[name])
    assert as_trained.dtype == np.uint8 and as_trained.flags.writeable
    assert as_trained.shape == as_edited.shape
    # JPEG has a decoder of its own in training, which rounds as it likes.
    assert np.abs(as_trained - as_edited).max() <= (1 if "JPEG" in name or name == "MPO" else 0)
    assert photo_size(path) == (as_trained.shape[1], as_trained.shape[0])


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["RGB PNG", "RGB JPEG", "RGB WEBP", "16-bit grey PNG", "RGB AVIF"])
def test_both_refuse_what_is_cut_short(name: str, cut: float, tmp_path: Path) -> None:
    data = FILES[name][: int(cut * len(FILES[name]))]
    path = tmp_path / "photo"
    path.write_bytes(data)
    with pytest.raises(OSError):
        decode_photo(data)
    with pytest.raises(ValueError, match="cannot read"):
        read_image(path)
