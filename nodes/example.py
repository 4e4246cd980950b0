"""Example Inputs: the bundled scenes, so that every shipped workflow runs as it stands."""

from __future__ import annotations

import functools

from comfy_api.latest import io

from ..pbe_model.scenes import Scene, load_scenes
from .category import CATEGORY, SEARCHES


class PBEExampleInputs(io.ComfyNode):
    """Photo, mask and exemplar of a bundled scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = list(_scenes())
        return io.Schema(
            node_id="PBEExampleInputs",
            display_name="Example Inputs",
            category=CATEGORY,
            description=(
                "A photo, a mask and an exemplar to try things out with. Replace it with LoadImage "
                "nodes to use your own."
            ),
            search_aliases=[*SEARCHES, "demo", "sample images", "test images"],
            inputs=[
                io.Combo.Input(
                    "scene",
                    options=names,
                    default=names[0],
                    tooltip="Which bundled scene to use.",
                )
            ],
            outputs=[
                io.Image.Output("photo", display_name="photo", tooltip="The photo to change."),
                io.Mask.Output(
                    "mask", display_name="mask", tooltip="Where to paint: white (1) is the hole."
                ),
                io.Image.Output(
                    "exemplar", display_name="exemplar", tooltip="The object to paint."
                ),
            ],
        )

    @classmethod
    def execute(cls, scene: str) -> io.NodeOutput:
        inputs = _scenes()[scene]
        return io.NodeOutput(inputs.photo[None], inputs.hole_mask[None], inputs.exemplar[None])


@functools.cache
def _scenes() -> dict[str, Scene]:
    return {scene.name: scene for scene in load_scenes()}
