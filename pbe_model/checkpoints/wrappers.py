"""What other tools put around a model's weights: words in their names, dictionaries around them.

torch.compile, DDP, FSDP and trainers wrap a model in a module of theirs, which adds a word to every
name; trainers and DeepSpeed save a dictionary in which the weights are one entry of many. The rule:

1. The words in `_WORDS` are left out wherever they stand in a name. No layer is called so.
2. What stands before the word that a layout's names begin with is left out, such as `model.` or
   `net.`.
3. Of the dictionaries in a file, the one nearest the top is taken that has such names, and of
   several there the first in `_ENTRIES`.
4. Of two copies, of which one is a moving average by the words around it (`ema`, `average`), the
   other is taken, or with `ema=True` the average.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..untrusted import shown
from .official_names import EMBEDDER, LEARNABLE_VECTOR, UNET, VAE

_WORDS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "module",  # DataParallel, DistributedDataParallel, DeepSpeed
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",  # Lightning Fabric
        "_module",  # Opacus
    }
)
_ENTRIES = (
    "state_dict",
    "model",
    "module",
    "model_state_dict",
    "model_state",
    "model_weights",
    "weights",
    "params",
    "net",
    "network",
)
_AVERAGE = re.compile(r"(?:^|[._-])(?:ema|averaged?|avg|shadow|swa)(?:[._-]|$)", re.IGNORECASE)
_MOST_LEVELS = 4  # of nested dictionaries; DeepSpeed's weights are one level deep
_MOST_ENTRIES = 10_000  # of them on a level


Layout = re.Pattern[str]
"""Matches the word that names of a layout begin with, after a group for what stands before it."""


def _layout(*heads: str) -> Layout:
    return re.compile(rf"((?:[^.]+\.)*?)(?:{'|'.join(heads)})")


OFFICIAL = _layout(
    rf"(?:model\.)?{re.escape(UNET.removeprefix('model.'))}",
    re.escape(VAE),
    re.escape(EMBEDDER),
    rf"{LEARNABLE_VECTOR}$",
)
PARTS_OF_FOLDER: dict[str, Layout] = {
    "unet": _layout(r"conv_\w+\.", r"time_embedding\.", r"(?:down_blocks|mid_block|up_blocks)\."),
    "vae": _layout(r"(?:en|de)coder\.", r"(?:post_)?quant_conv\."),
    "image_encoder": _layout(
        r"model\.(?:vision_model|encoder|embeddings|pre_layrnorm|post_layernorm)\.",
        r"mapper\.",
        r"final_layer_norm\.",
        r"proj_out\.",
        r"uncond_vector$",
    ),
}
"""Layouts of the weights in a diffusers folder."""
TOWER = _layout(
    r"(?:vision|text)_model\.",
    r"(?:visual|text)_projection\.",
    r"embeddings\.",
    r"encoder\.",
    r"(?:pre_layrnorm|post_layernorm)\.",
)
"""CLIP, or its image tower."""


@dataclass(frozen=True)
class Unwrapped:
    """Weights without their wrappers."""

    tensors: dict[str, Tensor]
    given: dict[str, str]
    """What a name is in the file."""
    dropped: list[str]
    """Names in the file that belong to a copy which was not taken."""
    notes: list[str]
    """What was left out, for a report."""
    averaged: bool
    """Whether the weights are a moving average."""


def without_words(name: str) -> str:
    """A name without the words that wrappers put into it."""
    if "_mod" not in name and "module" not in name:
        return name
    return ".".join(part for part in name.split(".") if part not in _WORDS) or name


def unwrap(
    tensors: Mapping[str, Tensor], layout: Layout, source: object, *, ema: bool = False
) -> Unwrapped:
    """Leave out what stands around names.

    Args:
        tensors: As the file names them.
        layout: `OFFICIAL`, or one of `PARTS_OF_FOLDER`.
        source: Name for errors.
        ema: Take the moving average where there are two copies.

    Raises:
        ValueError: Two copies, and nothing tells which one to take.
    """
    plain = {name: without_words(name) for name in tensors}
    found = {name: match[1] for name, word in plain.items() if (match := layout.match(word))}
    prefixes = sorted(set(found.values()), key=len, reverse=True)
    copies: dict[str, list[str]] = {}
    for name, word in plain.items():
        prefix = found.get(name)
        if prefix is None:  # a name that tells no layout, such as a schedule's
            prefix = next((p for p in prefixes if word.startswith(p)), "")
        copies.setdefault(word.removeprefix(prefix), []).append(name)
    given: dict[str, str] = {}
    dropped: list[str] = []
    left_out: Counter[str] = Counter()
    for word, names in copies.items():
        around = {name: _around(name, word) for name in names}
        pool = _copies_to_take(around, ema)
        dropped += [name for name in names if name not in pool]
        if word in pool:  # other names are left as they are, and are no model's
            given |= {name: name for name in pool}
        elif len(pool) == 1:
            given[word] = pool[0]
            left_out[around[pool[0]]] += 1
        else:
            raise ValueError(
                f"{source} holds {shown(word)} more than once, behind "
                f"{' and '.join(shown(around[name]) for name in pool[:3])}; keep one of them"
            )
    averages = sum(n for words, n in left_out.items() if _AVERAGE.search(words))
    return Unwrapped(
        {name: tensors[stored] for name, stored in given.items()},
        given,
        dropped,
        [f"{shown(words)} left out of {n:,} names" for words, n in left_out.most_common()],
        averages > len(given) / 2,
    )


@dataclass(frozen=True)
class Nested:
    """Weights, and the entries of dictionaries that lead to them."""

    tensors: dict[str, Tensor]
    path: list[str]

    @property
    def averaged(self) -> bool:
        """Whether they are a moving average, by the entry's name."""
        return _AVERAGE.search(".".join(self.path)) is not None

    @property
    def notes(self) -> list[str]:
        """For a report, where they are not where nearly all trainers have them."""
        usual = self.path in ([], ["state_dict"])
        return [] if usual else [f"weights taken from the entry {shown(' > '.join(self.path))}"]


def find_weights(
    outer: Mapping[Any, Any], layout: Layout, source: object, *, ema: bool = False
) -> Nested:
    """The weights in what a torch file holds.

    Args:
        outer: The dictionary at its top.
        layout: As for `unwrap`.
        source: Name for errors.
        ema: Take a moving average where there are two.

    Raises:
        ValueError: Two models, and nothing tells which one to take; or the file is one process's
            share of a model.
    """
    level: list[tuple[list[str], Mapping[Any, Any]]] = [([], outer)]
    for _ in range(_MOST_LEVELS):
        models = [(path, held) for path, held in level if _is_model(held, layout)]
        if models:
            path, held = _model_to_take(models, source, ema)
            tensors = _tensors(held)
            if not any(tensor.numel() for tensor in tensors.values()):
                raise ValueError(
                    f"{source} holds weights without values, as DeepSpeed's stage 3 writes them, "
                    "each process a share; make one file of them with its zero_to_fp32.py"
                )
            return Nested(tensors, path)
        below: list[tuple[list[str], Mapping[Any, Any]]] = [
            ([*path, key], value)
            for path, held in level
            for key, value in held.items()
            if isinstance(key, str) and isinstance(value, dict)
        ]
        level = below[:_MOST_ENTRIES]
    nested = outer.get("state_dict", outer)
    if not isinstance(nested, dict):
        raise ValueError(
            f"{source}: its 'state_dict' is not a dictionary, so this is not a model checkpoint; "
            "give a Paint by Example checkpoint"
        )
    return Nested(_tensors(nested), [])


def _tensors(held: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in held.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _is_model(held: Mapping[Any, Any], layout: Layout) -> bool:
    return any(layout.match(without_words(name)) for name in _tensors(held))


def _model_to_take(
    models: list[tuple[list[str], Mapping[Any, Any]]], source: object, ema: bool
) -> tuple[list[str], Mapping[Any, Any]]:
    """One of several dictionaries on the same level; see the rule above."""
    names = {".".join(path): (path, held) for path, held in models}
    pool = _copies_to_take({name: name for name in names}, ema)
    for entry in _ENTRIES:
        for name in pool:
            if entry in names[name][0][-1:]:
                return names[name]
    if len(pool) > 1:
        raise ValueError(
            f"{source} holds several models, as {' and '.join(map(shown, pool[:3]))}; keep one of "
            "them"
        )
    return names[pool[0]]


def _copies_to_take(around: Mapping[str, str], ema: bool) -> list[str]:
    """Those copies that are moving averages, or those that are not, by the words around them."""
    averages = [name for name, words in around.items() if _AVERAGE.search(words)]
    others = [name for name in around if name not in averages]
    return averages if averages and (ema or not others) else others


def _around(name: str, word: str) -> str:
    """What a name has more than the word that is left of it."""
    kept, more = word.split("."), []
    for part in reversed(name.split(".")):
        if kept and part == kept[-1]:
            kept.pop()
        else:
            more.append(part)
    return "".join(f"{part}." for part in reversed(more))
