"""The ComfyUI layer: thin nodes that convert, call `pbe_model`, and convert back.

Written against ComfyUI's V3 schema (`comfy_api.latest`). Node ids and the order of inputs and
outputs are part of people's saved graphs: they are frozen, and outputs are only ever appended.
"""

from comfy_api.latest import ComfyExtension, io

from .crop import PBECrop
from .example import PBEExampleInputs
from .exemplar import PBEExemplarEncoder
from .folders import register_folders
from .loader import PBELoader
from .lora import PBELoadLoRA
from .mask import PBEMaskAugmenter
from .outpaint import PBEOutpaint
from .replace import PBEPaint, PBEPaintGenerated, register_replacements
from .sampler import PBEInpaintSampler
from .save_model import PBESaveModel
from .saved import PBELoadExemplar, PBESaveExemplar
from .stitch import PBEStitch

__all__ = ["PaintByExampleExtension"]


class PaintByExampleExtension(ComfyExtension):
    """Everything that this pack adds to ComfyUI."""

    async def on_load(self) -> None:
        """Tell the host where files live, and whose nodes ours replace; makes no folder."""
        register_folders()
        await register_replacements()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes, in the order of a typical graph."""
        return [
            PBELoader,
            PBELoadLoRA,
            PBEExampleInputs,
            PBEMaskAugmenter,
            PBEExemplarEncoder,
            PBESaveExemplar,
            PBELoadExemplar,
            PBEInpaintSampler,
            PBEOutpaint,
            PBECrop,
            PBEStitch,
            PBEPaint,
            PBEPaintGenerated,
            PBESaveModel,
        ]
