"""Load LoRA (Paint by Example): adapters of every kind that `pbe edit --lora` reads."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..pbe_model.checkpoints.adapter_convert import read_as_kohya
from .adapter import show, with_adapter
from .category import CATEGORY, SEARCHES
from .folders import Choices

LORAS = Choices(
    "loras",
    "none in models/loras yet",
    "there is no LoRA in models/loras yet; put one there, then press R and choose it",
)


class PBELoadLoRA(io.ComfyNode):
    """Puts an adapter on a MODEL, and says what of it had an effect."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PBELoadLoRA",
            display_name="Load LoRA (Paint by Example)",
            category=CATEGORY,
            description=(
                "Loads a LoRA for Stable Diffusion 1.x of any trainer: kohya, diffusers, PEFT, "
                "LyCORIS (LoCon, LoHa, LoKr), DoRA. Says what of it this model can use."
            ),
            search_aliases=[*SEARCHES, "lora", "peft", "lycoris", "adapter", "fine-tune"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="From Load Paint by Example."),
                io.Combo.Input(
                    "lora",
                    options=LORAS.names(),
                    tooltip=(
                        "A file in models/loras. Of PEFT's, leave adapter_config.json beside it: "
                        "it tells the strength. Press R to see new files."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip=(
                        "How strongly it changes the model; 0 not at all, below 0 away from it."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    "patched",
                    display_name="model",
                    tooltip="The model with the LoRA. Several of these nodes in a row add up.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, **others: Any) -> float:
        """Changes when the file does, so that a replaced LoRA is loaded again."""
        return LORAS.fingerprint(lora)

    @classmethod
    def execute(cls, model: Any, lora: str, strength: float) -> io.NodeOutput:
        found = read_as_kohya(LORAS.path(lora))
        patched, layers, unknown = with_adapter(model, found.tensors, strength)
        said = [f"{layers:,} layers changed"]
        if found.of_text_encoder:
            said.append(f"{len(found.of_text_encoder):,} tensors of a text encoder left out")
        if missing := len(unknown) + len(found.unknown):
            name = (*unknown, *found.unknown)[0]
            said.append(f"{missing:,} that this model does not have left out, such as {name}")
        show(cls.hidden.unique_id, "; ".join(said))
        return io.NodeOutput(patched)
