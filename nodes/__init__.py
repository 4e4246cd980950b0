"""The ComfyUI layer: thin nodes that convert, call `pbe_model`, and convert back.

Written against ComfyUI's V3 schema (`comfy_api.latest`). Node ids and the order of inputs and
outputs are part of people's saved graphs: they are frozen, and outputs are only ever appended.
"""

from comfy_api.latest import ComfyExtension, io

from .example import PBEExampleInputs
from .exemplar import PBEExemplarEncoder
from .loader import PBELoader, register_model_folder
from .mask import PBEMaskAugmenter
from .sampler import PBEInpaintSampler
from .stitch import PBEStitch

__all__ = ["PaintByExampleExtension"]


class PaintByExampleExtension(ComfyExtension):
    """Everything that this pack adds to ComfyUI."""

    async def on_load(self) -> None:
        """Tell the host where Paint by Example checkpoints live; makes no folder."""
        register_model_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes, in the order of a typical graph."""
        return [
            PBELoader,
            PBEExampleInputs,
            PBEMaskAugmenter,
            PBEExemplarEncoder,
            PBEInpaintSampler,
            PBEStitch,
        ]
