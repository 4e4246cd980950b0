"""What stays behind of our MODEL on a card with little memory, beside the host's own SD 1.5.

There need be no card: the host decides by the free memory that it is told, before it moves
anything. So it is told of cards on which nothing, a quarter, half or all of the weights have place,
and runs as it would with `--lowvram` or `--novram`, on the CPU. Runs inside the host's interpreter,
see `checks.py`; its results are those of `adapter_checks`.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Starts the host's modules.
from patch_checks import CPU, SIZES, host_model, latents, lora, our_model, relative

# isort: split
import comfy.model_management
import torch
from adapter_checks import run
from comfy.patcher_extension import WrappersMP

management = comfy.model_management
EXTRA = 5 * 9 * SIZES.unet.model_channels
"""Weights of the first layer for the five channels of photo and mask."""
SHARES = {"nothing": 0.0, "a quarter": 0.25, "half": 0.5, "all": 3.0}
"""Of the weights, that have place: casting needs some as well."""


def models(dtype: torch.dtype) -> dict[str, Any]:
    """Both, new: what is loaded and patched is kept with a model."""
    mine = our_model(0, dtype)
    return {"ours": mine, "theirs": host_model(0, dtype, mine.model.manual_cast_dtype)}


@dataclass(frozen=True)
class Loaded:
    """What the host has made of a model."""

    size: int
    buffer: int
    cast: tuple[str, ...]
    patches: int


def loaded(model) -> Loaded:
    cast = [
        name
        for name, module in model.model.named_modules()
        if hasattr(module, "prev_comfy_cast_weights")
    ]
    inner = model.model
    return Loaded(
        model.loaded_size(), inner.model_offload_buffer_memory, tuple(sorted(cast)),
        inner.lowvram_patch_counter,
    )  # fmt: skip


@contextlib.contextmanager
def card(free: float, state: Any) -> Iterator[None]:
    """The host believes that the models' device is a card with this much free memory."""
    before = (management.get_free_memory, management.is_device_cpu, management.vram_state)
    management.get_free_memory = lambda _=None, both=False: (free, free) if both else free
    management.is_device_cpu = lambda _: False
    management.vram_state = state
    try:
        yield
    finally:
        management.get_free_memory, management.is_device_cpu, management.vram_state = before


def sampled(model, free: float, state: Any) -> tuple[torch.Tensor, Loaded]:
    """Latents, and what was loaded while they were made."""
    management.unload_all_models()
    seen = []

    def look(executor, *args, **kwargs):
        seen.append(loaded(model))
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "look", look)
    with card(free, state):
        result = latents(model, steps=1)
    return result, seen[-1]


def layer_bytes(model, name: str) -> int:
    return management.module_size(model.model.get_submodule(name))


def compare(dtype: torch.dtype, apply=lambda model: model) -> None:
    """All budgets, with `--lowvram`'s way to find them and `--novram`'s."""
    extra = EXTRA * dtype.itemsize
    # On the CPU the host computes both in float32, whatever they are kept in.
    results = {name: apply(model) for name, model in models(dtype).items()}
    size = results["theirs"].model_size()
    assert results["ours"].model_size() == size + extra
    first = layer_bytes(results["ours"], "diffusion_model.input_blocks.0.0")
    management.unload_all_models()
    full = {name: latents(model, steps=1) for name, model in results.items()}
    assert relative(full["ours"], full["theirs"]) < 1e-5
    low, none = management.VRAMState.LOW_VRAM, management.VRAMState.NO_VRAM
    cases = {name: (share, low) for name, share in SHARES.items()} | {"novram": (3.0, none)}
    counts = []
    for case, (share, state) in cases.items():
        free = management.minimum_inference_memory() + share * size
        found = {name: sampled(model, free, state) for name, model in results.items()}
        (mine, my), (theirs, their) = found["ours"], found["theirs"]
        # The last gap is filled with what is as small as the first layer, which is larger in ours.
        apart = set(my.cast) ^ set(their.cast)
        small = [n for n in apart if layer_bytes(results["ours"], n) <= first]
        assert len(small) == len(apart) <= 4, (case, apart)
        assert abs(len(my.cast) - len(their.cast)) <= 2, (case, apart)
        assert my.patches == their.patches, (case, my.patches, their.patches)
        assert abs(my.size - their.size) <= first, (case, my.size, their.size)
        assert abs(my.buffer - their.buffer) <= first, (case, my.buffer, their.buffer)
        assert relative(mine, full["ours"]) < 1e-5, (case, relative(mine, full["ours"]))
        assert relative(theirs, full["theirs"]) < 1e-5, case
        counts.append((case, my.size / size, len(my.cast), my.patches))
    shares = [share for _, share, *_ in counts]
    assert shares[0] == shares[4] == 0 and shares[3] >= 1, counts
    assert 0.05 < shares[1] < 0.25 < shares[2] < 0.5, counts
    assert counts[0][2] > counts[1][2] > counts[2][2] > counts[3][2] == 0, counts


def check_the_same_weights_stay_behind(_: None) -> None:
    compare(torch.float32)


def check_the_same_weights_stay_behind_in_half_precision(_: None) -> None:
    """Where the host counts with what they take as float32 as well."""
    compare(torch.float16)


def check_a_lora_on_weights_that_stay_behind(_: None) -> None:
    compare(torch.float32, lora)


def check_the_same_is_given_back_when_others_need_memory(_: None) -> None:
    """A loaded model that has to make room, as for an upscaler in the same graph."""
    both = models(torch.float32)
    size = both["theirs"].model_size()
    found = {}
    for name, model in both.items():
        management.unload_all_models()
        full = latents(model, steps=1)
        freed = model.partially_unload(CPU, size // 2)
        assert freed >= size // 2
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, 16, 16, generator=generator)
        x = torch.cat([x, torch.ones(1, 5, 16, 16)], dim=1) if name == "ours" else x
        context = torch.randn(1, 1, SIZES.unet.context_dim, generator=generator)
        network = model.model.diffusion_model
        partly = network(x, torch.tensor([500.0]), context=context)
        found[name] = (freed, loaded(model), partly)
        management.unload_all_models()
        assert relative(latents(model, steps=1), full) < 1e-5
        assert relative(network(x, torch.tensor([500.0]), context=context), partly) < 1e-5
    (my_freed, my, mine), (their_freed, their, theirs) = found["ours"], found["theirs"]
    assert my.cast == their.cast and len(my.cast) > 100
    assert my.size - their.size + my_freed - their_freed == EXTRA * 4
    assert min(my.size - their.size, my_freed - their_freed) >= 0
    assert relative(mine, theirs) < 1e-5


def check_the_host_expects_the_same_need(_: None) -> None:
    """It frees by its estimate of what a step needs, so that has to be that of SD 1.5."""
    both = models(torch.float32)
    for shape in ((1, 4, 64, 64), (2, 4, 64, 96), (8, 4, 128, 128)):
        mine, theirs = (model.memory_required(shape) for model in both.values())
        assert mine == theirs > 0
    assert isinstance(both["ours"], type(both["theirs"]))


def results() -> dict[str, str | None]:
    return run(lambda: None, globals())
