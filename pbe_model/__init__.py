"""Paint by Example: paint an example image into a masked region of a photo (arXiv 2211.13227)."""

from .config import CONFIGS, TINY, V1, PBEConfig
from .editing.edit import EditResult, edit
from .model import PaintByExample

__all__ = ["CONFIGS", "TINY", "V1", "EditResult", "PBEConfig", "PaintByExample", "edit"]
