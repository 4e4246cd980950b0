"""Save Exemplar and Load Exemplar: an encoded exemplar as a file, to be used again."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..pbe_model.checkpoints.exemplar_file import EncodedExemplar, load_exemplar, save_exemplar
from .adapter import Conditioning, check_order, check_tagged, show, tagged
from .category import CATEGORY, SEARCHES
from .file_names import checked_name
from .folders import EXEMPLAR_FOLDER, Choices, saved_exemplars

EXEMPLARS = Choices(
    EXEMPLAR_FOLDER,
    "none saved yet",
    "there is no saved exemplar yet; run Save Exemplar once, then press R and choose it",
)


class PBESaveExemplar(io.ComfyNode):
    """Writes what Exemplar Encoder made to the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PBESaveExemplar",
            display_name="Save Exemplar",
            category=CATEGORY,
            description=(
                "Saves an encoded exemplar to output/exemplars, a file of a few kilobytes. Load "
                "Exemplar can then take the place of the pictures and their encoder."
            ),
            search_aliases=[*SEARCHES, "save conditioning", "export exemplar", "reference image"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The exemplar, from Exemplar Encoder."),
                io.Conditioning.Input("negative", tooltip="From Exemplar Encoder as well."),
                io.String.Input(
                    "name",
                    default="exemplar",
                    tooltip="File name; a number is added. May have a folder in front: pets/cat.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, positive: Conditioning, negative: Conditioning, name: str) -> io.NodeOutput:
        exemplar = EncodedExemplar(_only("positive", positive), _only("negative", negative))
        check_order([positive[0][1]], [negative[0][1]])
        folder, stem, number, subfolder, _ = folder_paths.get_save_image_path(
            checked_name(name), saved_exemplars()
        )
        file = f"{stem}_{number:05}.safetensors"
        save_exemplar(Path(folder, file), exemplar)
        place = os.path.join(os.path.basename(saved_exemplars()), subfolder)
        saved = {"filename": file, "subfolder": os.path.normpath(place), "type": "output"}
        text = (
            f"Saved to {Path(folder, file)}\n"
            f"Press R, then choose {Path(subfolder, file).as_posix()} in Load Exemplar."
        )
        show(cls.hidden.unique_id, text)
        return io.NodeOutput(ui={"exemplars": [saved], "text": [text]})


class PBELoadExemplar(io.ComfyNode):
    """Reads an encoded exemplar; its pictures and their encoder are no longer needed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PBELoadExemplar",
            display_name="Load Exemplar",
            category=CATEGORY,
            description=(
                "Loads an exemplar that Save Exemplar wrote, in place of Exemplar Encoder. It "
                "belongs to the checkpoint that encoded it."
            ),
            search_aliases=[*SEARCHES, "load conditioning", "import exemplar", "reference image"],
            inputs=[
                io.Combo.Input(
                    "exemplar",
                    options=EXEMPLARS.names(),
                    tooltip=(
                        "A file in output/exemplars or models/pbe_exemplars. Press R to see those "
                        "that have just been saved."
                    ),
                )
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive",
                    display_name="positive",
                    tooltip="The exemplar. For PBE Inpaint Sampler or InpaintModelConditioning.",
                ),
                io.Conditioning.Output(
                    "negative",
                    display_name="negative",
                    tooltip="The 'no exemplar' of the checkpoint that encoded it.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, exemplar: str) -> float:
        """Changes when the file does, so that a replaced exemplar is loaded again."""
        return EXEMPLARS.fingerprint(exemplar)

    @classmethod
    def execute(cls, exemplar: str) -> io.NodeOutput:
        loaded = load_exemplar(EXEMPLARS.path(exemplar))
        return io.NodeOutput(*tagged(loaded.positive, loaded.negative))


def _only(name: str, conditioning: Conditioning) -> Tensor:
    """The tokens of a conditioning that has a single entry."""
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} combines {len(conditioning)} conditionings, and a file holds one; save each "
            "of them, or take one each or average as the merge of Exemplar Encoder"
        )
    tokens, entries = conditioning[0]
    check_tagged(name, tokens, entries)
    return tokens
