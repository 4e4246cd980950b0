"""The whole edit as one node, in the place of other packs' nodes.

Graphs made with two older packs hold nodes that take photo, mask and example, and load the model
themselves; one makes the example from a prompt. ComfyUI can put one node in the place of another,
so these are the ones for those. They have no code of their own for the edit: they expand into the
nodes of this pack.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyAPI, io
from comfy_execution.graph_utils import GraphBuilder

from ..pbe_model.config import EditDefaults
from .category import CATEGORY, SEARCHES
from .exemplar import PBEExemplarEncoder
from .loader import PBELoader
from .sampler import PBEInpaintSampler, host_samplers

_LINKS = ("image", "mask", "exemplar")


class PBEPaint(io.ComfyNode):
    """Loads the model, encodes the exemplar and paints it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            *_inputs_of(PBEInpaintSampler, "image", "mask"),
            *_inputs_of(PBEExemplarEncoder, "exemplar"),
            *_inputs_of(PBEInpaintSampler, "seed", "steps", "similarity"),
            *_inputs_of(PBELoader, "checkpoint"),
        ]
        for given in inputs:
            # The nodes inside are linked to what comes before this one, so that they stay cached.
            given.rawLink = given.id in _LINKS
        return io.Schema(
            node_id="PBEPaint",
            display_name="Paint by Example (simple)",
            category=CATEGORY,
            description=(
                "The whole edit in one node: loads the model, looks at the exemplar, and paints it "
                "into the masked part of the photo. Takes the place of other packs' Paint by "
                "Example nodes in old graphs."
            ),
            search_aliases=[*SEARCHES, "PaintbyExampleSimple", "PaintbyExampleSampler"],
            enable_expand=True,
            inputs=inputs,
            outputs=[
                io.Image.Output(
                    "images", display_name="image", tooltip="The photo with the exemplar in it."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        image: list,
        mask: list,
        exemplar: list,
        seed: int,
        steps: int,
        similarity: float,
        checkpoint: str,
    ) -> io.NodeOutput:
        graph = GraphBuilder()

        def add(node: type[io.ComfyNode], **inputs: Any):
            schema = node.define_schema()
            return graph.node(schema.node_id, **{**_defaults(schema), **inputs})

        parts = add(PBELoader, checkpoint=checkpoint)
        tokens = add(PBEExemplarEncoder, encoder=parts.out(1), exemplar=exemplar)
        painted = add(
            PBEInpaintSampler,
            model=parts.out(0),
            positive=tokens.out(0),
            negative=tokens.out(1),
            vae=parts.out(2),
            image=image,
            mask=mask,
            seed=seed,
            steps=steps,
            similarity=similarity,
        )
        return io.NodeOutput(painted.out(0), expand=graph.finalize())


class PBEPaintGenerated(io.ComfyNode):
    """Generates the exemplar from a prompt, then paints it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        linked = [
            *_inputs_of(PBEPaint, "image", "mask"),
            io.Model.Input("model", tooltip="The text-to-image model that makes the exemplar."),
            io.Conditioning.Input("positive", tooltip="The prompt of the exemplar."),
            io.Conditioning.Input("negative", tooltip="What the exemplar should not show."),
            io.Latent.Input("latent_image", tooltip="An empty latent of the exemplar's size."),
            io.Vae.Input("vae", tooltip="The VAE of the text-to-image model."),
        ]
        for given in linked:
            given.rawLink = True
        return io.Schema(
            node_id="PBEPaintGenerated",
            display_name="Paint by Generated Example",
            category=CATEGORY,
            description=(
                "Makes the exemplar with a text-to-image model and paints it into the masked part "
                "of the photo. Takes the place of another pack's node in old graphs."
            ),
            search_aliases=[*SEARCHES, "PaintbyExampleGen"],
            enable_expand=True,
            inputs=[
                *linked,
                *_inputs_of(PBEInpaintSampler, "seed"),
                # For both models, so neither model's own settings can count.
                io.Int.Input(
                    "steps",
                    default=EditDefaults.steps,
                    min=1,
                    max=1000,
                    tooltip="Denoising steps of both models.",
                ),
                io.Float.Input(
                    "similarity",
                    default=EditDefaults.similarity,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of both models: to the prompt, and to the exemplar.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=host_samplers(),
                    default=EditDefaults.sampler,
                    tooltip="Sampling algorithm of the text-to-image model.",
                ),
                *_inputs_of(PBEInpaintSampler, "scheduler"),
                *_inputs_of(PBELoader, "checkpoint"),
            ],
            outputs=[
                io.Image.Output(
                    "images", display_name="image", tooltip="The photo with the exemplar in it."
                ),
                io.Image.Output(
                    "exemplar", display_name="exemplar", tooltip="The exemplar that was made."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: list,
        mask: list,
        model: list,
        positive: list,
        negative: list,
        latent_image: list,
        vae: list,
        seed: int,
        steps: int,
        similarity: float,
        sampler_name: str,
        scheduler: str,
        checkpoint: str,
    ) -> io.NodeOutput:
        graph = GraphBuilder()
        latent = graph.node(
            "KSampler",
            model=model,
            positive=positive,
            negative=negative,
            latent_image=latent_image,
            seed=seed,
            steps=steps,
            cfg=similarity,
            sampler_name=sampler_name,
            scheduler=scheduler,
            denoise=1.0,
        )
        exemplar = graph.node("VAEDecode", samples=latent.out(0), vae=vae)
        painted = graph.node(
            "PBEPaint",
            image=image,
            mask=mask,
            exemplar=exemplar.out(0),
            seed=seed,
            steps=steps,
            similarity=similarity,
            checkpoint=checkpoint,
        )
        return io.NodeOutput(painted.out(0), exemplar.out(0), expand=graph.finalize())


async def register_replacements() -> None:
    """Tell the host which nodes of other packs ours take the place of."""
    for replacement in replacements():
        await ComfyAPI().node_replacement.register(replacement)


def replacements() -> list[io.NodeReplace]:
    """The nodes of phyblas/paint-by-example_comfyui and Kangkang625/ComfyUI-paint-by-example.

    What an old node cannot say is set here, for prompts in the API's form; the page has the same
    defaults.
    """
    defaults = _defaults(PBEPaint.define_schema())
    links = {"image": "image", "mask": "mask", "exemplar": "example"}
    simple = {**links, "seed": "seed", "steps": "steps"}
    # Behind the seed the page keeps what becomes of it after a run.
    widgets = ["seed", "control_after_generate", "steps"]
    more = ["cfg", "sampler_name", "negative", "resize", "width", "height", "resize_mode"]
    same = ("image", "mask", "model", "positive", "negative", "latent_image", "vae")
    same += ("seed", "steps", "sampler_name", "scheduler")
    return [
        _replace(PBEPaint, "PaintbyExampleSimple", simple, defaults, widgets),
        _replace(
            PBEPaint,
            "PaintbyExampleAdvanced",
            {**simple, "similarity": "cfg"},
            defaults,
            [*widgets, *more],
        ),
        _replace(
            PBEPaintGenerated,
            "PaintbyExampleGen",
            {**dict(zip(same, same, strict=True)), "similarity": "cfg"},
            _defaults(PBEPaintGenerated.define_schema()),
            [*widgets, "cfg", "sampler_name", "scheduler"],
            outputs=2,
        ),
        _replace(PBEPaint, "PaintbyExampleSampler", links, defaults, ["height", "width"]),
        _replace(
            PBELoader,
            "PaintbyExamplePipeLoader",
            {},
            _defaults(PBELoader.define_schema()),
            ["checkpoint"],
            # What took its model has gone as well; the host fails on links between the two.
            outputs=0,
        ),
    ]


def _replace(
    node: type[io.ComfyNode],
    old: str,
    inputs: dict[str, str],
    defaults: dict[str, Any],
    widgets: list[str],
    outputs: int = 1,
) -> io.NodeReplace:
    """`node` in the place of `old`; `inputs` are the old names by the new, `defaults` the rest."""
    kept = [{"new_id": new, "old_id": name} for new, name in inputs.items()]
    given = [
        {"new_id": new, "set_value": value} for new, value in defaults.items() if new not in inputs
    ]
    return io.NodeReplace(
        new_node_id=node.define_schema().node_id,
        old_node_id=old,
        old_widget_ids=widgets,
        input_mapping=[*kept, *given],
        output_mapping=[{"new_idx": i, "old_idx": i} for i in range(outputs)],
    )


def _inputs_of(node: type[io.ComfyNode], *names: str) -> list[io.Input]:
    """Inputs of another node, to be the same in this one."""
    inputs = {given.id: given for given in node.define_schema().inputs}
    return [inputs[name] for name in names]


def _defaults(schema: io.Schema) -> dict[str, Any]:
    """The values of all widgets of a node that nobody has touched."""
    return {given.id: given.default for given in schema.inputs if isinstance(given, io.WidgetInput)}
