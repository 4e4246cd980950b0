"""Paint by Example: paint an example image into a masked region of a photo (arXiv 2211.13227)."""

from .config import CONFIGS, TINY, V1, PBEConfig
from .editing.batch import EditResult
from .editing.crop_settings import CropSettings
from .editing.edit import edit
from .model import PaintByExample

__all__ = [
    "CONFIGS",
    "TINY",
    "V1",
    "CropSettings",
    "EditResult",
    "PBEConfig",
    "PaintByExample",
    "edit",
]
