"""What tensors in a file of an adapter are called, by the programs that write such files.

A name is that of a layer and of a role: `up` and `down` are the halves of a LoRA. Layers have
diffusers' or the official names, with underscores (kohya's and LyCORIS' trainers) or dots
(diffusers, PEFT, ComfyUI), behind a prefix or none. So a name without prefix and with underscores
for dots is the common form of all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..config import PBEConfig
from .diffusers_layout import module_table, renamed
from .official_names import EMBEDDER, UNET
from .wrappers import without_words

_ROLES = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<kohya>up|down|mid)\.weight"
    r"|[._]lora\.(?P<diffusers>up|down)\.weight"
    r"|\.lora_linear_layer\.(?P<linear>up|down)\.weight"
    r"|\.(?P<bias>lora_B)(?:\.\w+)?\.bias"
    r"|\.lora_(?P<peft>[AB])(?:\.(?!bias)\w+)?(?:\.weight)?"
    r"|\.lora_(?P<magnitude>magnitude_vector)(?:\.\w+)?(?:\.weight)?"
    r"|\.(?P<lycoris>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))(?:\.\w+)?"
    r"|\.(?P<plain>alpha|dora_scale|diff|diff_b|w_norm|b_norm)"
    r")"
)
_SAME = {"A": "down", "B": "up", "lora_B": "up_bias", "magnitude_vector": "magnitude",
         "w_norm": "diff", "b_norm": "bias", "diff_b": "bias"}  # fmt: skip
_PREFIX = re.compile(
    r"base_model\.model\.|(?:model\.)?diffusion_model\.|unet\.|lora_unet_|lycoris_|lora_(?=encoder_)"
)
_TEXT_ENCODER = re.compile(
    r"lora_te\d?_|lora_clip_|(?:base_model\.model\.)?text_(?:encoder|model)|clip_[lg]\.|t5xxl\.|"
    + re.escape(EMBEDDER)
)
_FAMILIES = {
    "FLUX": r"double_blocks|single_(?:transformer_)?blocks",
    "Stable Diffusion 3": r"joint_(?:transformer_)?blocks|transformer[._]transformer_blocks",
    "a model of transformers alone": r"(?:diffusion_model\.|unet_+)blocks[._]\d",
    "Stable Cascade": r"lora_prior_",
    "Stable Diffusion XL": r"lora_te2_|text_encoder_2|transformer_blocks[._][1-9]",
}
"""What names tell that an adapter is for another model than one of Stable Diffusion 1's kind."""


@dataclass(frozen=True)
class Sorted:
    """The names in a file by what they are."""

    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    """By layer of the model and role, the name in the file."""
    of_text_encoder: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    """Names of layers that the model has, with a role that means nothing here."""
    unknown: list[str] = field(default_factory=list)


def names_in_file(paths: Iterable[str], config: PBEConfig) -> dict[str, str]:
    """What layers are called in files of ours, by their names in the model.

    Args:
        paths: Such as `unet.middle_block.1.proj_in`.
        config: The model's.
    """
    table, names = module_table(config), {}
    for path in paths:
        part, _, rest = path.partition(".")
        if part == "unet":
            (theirs,) = renamed(UNET + rest, table)
            rest = theirs.removeprefix("unet.")
        names[path] = f"lora_{part}_{rest}".replace(".", "_")
    return names


def sort_names(names: Iterable[str], layers: Iterable[str], config: PBEConfig) -> Sorted:
    """Tell for each name in a file which layer and role it means.

    Args:
        names: As the file has them.
        layers: The names of the model's layers.
        config: The model's.
    """
    return sort_layers(names, _common_names(layers, config).get)


def sort_layers(names: Iterable[str], layer_of: Callable[[str], str | None]) -> Sorted:
    """As `sort_names`, for a model that is known otherwise.

    Args:
        names: As the file has them.
        layer_of: The layer that a name in its common form means, or None.
    """
    found = Sorted()
    for name in names:
        match = _ROLES.fullmatch(without_words(name))
        layer = layer_of(_common(match["layer"])) if match else None
        if match and layer is not None:
            given = next(value for key, value in match.groupdict().items()
                         if value and key != "layer")  # fmt: skip
            role = _SAME.get(given, given)
            if role in found.parts.setdefault(layer, {}):
                found.unsupported.append(name)
            found.parts[layer][role] = name
        elif _TEXT_ENCODER.match(name):
            found.of_text_encoder.append(name)
        elif not match and any(layer_of(_common(start)) is not None for start in _starts(name)):
            found.unsupported.append(name)
        else:
            found.unknown.append(name)
    return found


def is_of_peft(name: str) -> bool:
    """Whether a name is one that PEFT gives, whose files do not state alpha."""
    return re.search(r"\.lora_[AB](?:\.|$)", name) is not None


def family(names: Iterable[str]) -> str | None:
    """The family of models that an adapter is for, where names tell that it is another one."""
    joined = "\n".join(names)
    return next((name for name, pattern in _FAMILIES.items() if re.search(pattern, joined)), None)


def _common_names(layers: Iterable[str], config: PBEConfig) -> dict[str, str]:
    """The model's layers by the common form of all their names."""
    paths = list(layers)
    known = {_common(theirs): path for path, theirs in names_in_file(paths, config).items()}
    known |= {_common(path): path for path in paths}
    return known


def _common(name: str) -> str:
    while match := _PREFIX.match(name):
        name = name[match.end() :]
    # Diffusers' processors, before PEFT, call the first layer of `to_out` by that name alone.
    name = re.sub(r"\.processor\.to_out$", ".to_out.0", name)
    return name.replace(".processor.", ".").replace(".", "_")


def _starts(name: str) -> Iterable[str]:
    """A name without its last words; few, as no role has more than four."""
    for _ in range(4):
        name, dot, _ = name.rpartition(".")
        if not dot:
            return
        yield name
