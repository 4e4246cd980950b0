"""What a training step costs, counted by running it without data.

The step of a configuration runs on fake tensors: shapes and types are those of the real step,
autocast and gradient checkpointing included, but nothing is computed and nothing allocated. Its
matrix products and convolutions give the FLOPs, the lifetimes of its storages the memory.

One run gives the memory for every batch size. Its batch is a large prime number, so the size of a
storage is a multiple of that number if the batch is one of its dimensions, and otherwise is not.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from pbe_model.config import PBEConfig
from pbe_model.model import PaintByExample
from pbe_model.networks.vae import AutoencoderKL
from pbe_model.sampling.schedule import NoiseSchedule
from training.config import RunConfig
from training.optim.gradients import Bf16GradOptimizer, grad_bytes_at_update, keeps_bf16_grads
from training.stages import diffusion, exemplar, first_stage
from training.stages.latents import AT_ONCE

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
ENCODING = ("first stage, photo", "first stage, hole")
"""Parts of a step that a bank of latents saves."""

_BATCH = 1009  # prime, and no width, token count or picture side is a multiple of it
_PARTS = {  # modules of the losses; an outer one counts without the inner ones listed here
    "DiffusionLoss.encoder.cond_stage_model.transformer": "image tower",
    "DiffusionLoss.encoder": "mapper",
    "DiffusionLoss.unet": "denoiser",
    "ExemplarLoss.encoder.cond_stage_model.transformer": "image tower",
    "ExemplarLoss.encoder": "mapper",
    "FirstStageLoss.vae.encoder": "encoder",
    "FirstStageLoss.vae.decoder": "decoder",
}
_ATTENTION = torch.ops.aten._scaled_dot_product_efficient_attention


@dataclass(frozen=True, kw_only=True, eq=False)
class StepCount:
    """Cost of a micro-batch: forward and backward pass, without the optimizer's step.

    Attributes:
        flops: (forward, backward) per sample, by part; a multiplication and an addition are two.
            With gradient checkpointing, what is recomputed counts as backward.
        parameters: Number of parameters: `trained`, and frozen ones by what they belong to.
        weight_bytes: Bytes of all parameters.
        trained_bytes: Bytes of the trained ones; each average of the weights takes as many.
        update_bytes: Most bytes of gradients that live at once during the optimizer's step.
        fixed: int64 `(T,)`, bytes live after each allocation whatever the batch, without weights.
        per_sample: int64 `(T,)`, bytes live after each allocation that every sample adds.
    """

    flops: Mapping[str, tuple[float, float]]
    parameters: Mapping[str, int]
    weight_bytes: int
    trained_bytes: int
    update_bytes: int
    fixed: np.ndarray
    per_sample: np.ndarray

    @property
    def total_flops(self) -> float:
        """FLOPs per sample, forward and backward."""
        return sum(forward + backward for forward, backward in self.flops.values())

    def peak(self, batch: int) -> int:
        """Most bytes live at once besides the weights, in a micro-batch of `batch` samples."""
        return int((self.fixed + batch * self.per_sample).max())

    def largest_batch(self, room: float) -> int:
        """The largest micro-batch whose peak is at most `room` bytes; 0 if none fits."""
        grows = self.per_sample > 0
        if self.fixed.max() > room:
            return 0
        return int(((room - self.fixed[grows]) // self.per_sample[grows]).min())


def count_step(
    config: RunConfig,
    sizes: PBEConfig,
    *,
    processes: int = 1,
    checkpointing: bool = False,
    like_cuda: bool = True,
) -> StepCount:
    """Count the training step of a run.

    Args:
        config: The run. None of the files that it names is opened.
        sizes: The model's architecture.
        processes: How many train together.
        checkpointing: Whether the denoiser checkpoints gradients, whatever `config` says.
        like_cuda: Follow CUDA's autocast, whose normalisations compute and return float32, rather
            than the CPU's.
    """
    config = config.model_copy(update={"gradient_checkpointing": checkpointing})
    with _fake_modules(config, sizes) as (module, vae):
        trained = [p for p in module.parameters() if p.requires_grad]
        update_bytes = grad_bytes_at_update(module, config, processes)
    fixed, per_sample = _count_memory(config, sizes, processes, like_cuda)
    return StepCount(
        flops=count_flops(config, sizes),
        parameters=_parameters(module, vae),
        weight_bytes=sum(p.nbytes for part in (module, vae) if part for p in part.parameters()),
        trained_bytes=sum(p.nbytes for p in trained),
        update_bytes=update_bytes,
        fixed=fixed,
        per_sample=per_sample,
    )


def count_flops(config: RunConfig, sizes: PBEConfig) -> dict[str, tuple[float, float]]:
    """The `flops` of `StepCount`, with gradient checkpointing if `config` says so."""
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)  # pyright: ignore[reportArgumentType]
    fake = _fake_modules(config, sizes)
    with fake as (module, vae), _DeviceKernels(None, like_cuda=False), counter:
        batch = empty_batch(config, sizes, vae, _BATCH)
        encoding = counter.get_total_flops() / AT_ONCE  # of one picture
        loss = module(batch)["loss"]
        forward = _by_part(counter)
        _backward(loss)
        both = _by_part(counter)
    parts = {name: (encoding, 0.0) for name in ENCODING if encoding}
    return parts | {name: (forward[name], both[name] - forward[name]) for name in both}


def _count_memory(
    config: RunConfig, sizes: PBEConfig, processes: int, like_cuda: bool
) -> tuple[np.ndarray, np.ndarray]:
    """`fixed` and `per_sample` of `StepCount`.

    A run of its own, because the FLOP counter keeps alive what gradient checkpointing frees.
    """
    with _fake_modules(config, sizes) as (module, vae):
        resident = [t for part in (module, vae) if part for t in part.state_dict().values()]
        for parameter in module.parameters():
            # With accumulation the gradients of the micro-batch before are already there.
            if config.accumulate > 1 and parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
                resident.append(parameter.grad)
        if keeps_bf16_grads(config, processes):
            Bf16GradOptimizer(module, torch.optim.SGD(module.parameters()))  # for its hooks
        meter = _Meter(resident)
        with _DeviceKernels(AUTOCAST.get(config.precision), like_cuda=like_cuda), meter:
            with autocast(config.precision):
                batch = empty_batch(config, sizes, vae, _BATCH)
                loss = module(batch)["loss"]
            _backward(loss)
    fixed, per_sample = np.array(meter.history, dtype=np.int64).T
    return fixed, per_sample


def _backward(loss: Tensor) -> None:
    """`loss.backward()` that leaves modes on, so that they see what checkpointing recomputes."""
    _engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip


@contextlib.contextmanager
def _fake_modules(
    config: RunConfig, sizes: PBEConfig
) -> Iterator[tuple[nn.Module, AutoencoderKL | None]]:
    """The loss and its frozen first stage, made of fake tensors, in the mode to run them in.

    Tensors on "meta" would do as well, if autocast worked on them.
    """
    schedule = NoiseSchedule.linear(sizes.schedule)
    # It computes its tables when first used; inside the mode they would have no contents.
    schedule.add_noise(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield loss_modules(config, sizes, schedule)


def loss_modules(
    config: RunConfig, sizes: PBEConfig, schedule: NoiseSchedule
) -> tuple[nn.Module, AutoencoderKL | None]:
    """The loss as the stage makes it, and the frozen first stage beside it.

    Args:
        config: The run.
        sizes: The model's architecture.
        schedule: Of real tensors, also where the modules are made of fake ones.
    """
    if config.stage == "first_stage":
        return first_stage.first_stage_loss(config, sizes), None
    if config.stage == "exemplar":
        model = PaintByExample(sizes)
        exemplar.freeze(model)
        return exemplar.exemplar_loss(model.encoder, config), None
    return diffusion.loss_modules(config, sizes, schedule)


def empty_batch(
    config: RunConfig, sizes: PBEConfig, vae: AutoencoderKL | None, batch: int
) -> dict[str, Tensor]:
    """What the loss takes, as the stage makes it, without contents."""
    if config.stage == "first_stage":
        return first_stage.empty_batch(sizes, batch)
    if config.stage == "exemplar":
        return exemplar.empty_batch(sizes, batch)
    assert vae is not None
    return diffusion.empty_batch(config, sizes, vae, batch)


def _by_part(counter: FlopCounterMode) -> dict[str, float]:
    """FLOPs per sample so far, by part of the loss."""
    counts = {name: sum(ops.values()) / _BATCH for name, ops in counter.get_flop_counts().items()}
    parts: dict[str, float] = {}
    for module, part in _PARTS.items():
        if module in counts:
            inner = [n for n in _PARTS if n.startswith(f"{module}.") and n in counts]
            parts[part] = counts[module] - sum(counts[name] for name in inner)
    return parts


def _parameters(module: nn.Module, vae: AutoencoderKL | None) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            counts["trained"] += parameter.numel()
        elif name.startswith("unet."):
            counts["frozen in the denoiser"] += parameter.numel()
        else:
            counts["frozen in the image encoder"] += parameter.numel()
    if vae is not None:
        counts["frozen first stage"] = sum(p.numel() for p in vae.parameters())
    return dict(counts)


class _Meter(TorchDispatchMode):
    """Bytes of live storages after each allocation: whatever the batch, and per sample.

    Args:
        resident: Tensors that are there before and do not count.
    """

    def __init__(self, resident: Sequence[Tensor]) -> None:
        super().__init__()
        self.history: list[tuple[int, int]] = []
        self._live = [0, 0]
        self._known = {tensor.untyped_storage()._cdata for tensor in resident}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._allocated(tensor.untyped_storage())
        return result

    def _allocated(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:  # the result is a view, or was changed in place
            return
        grows = size % _BATCH == 0
        amount = size // _BATCH if grows else size
        self._known.add(key)
        self._live[grows] += amount
        self.history.append((self._live[0], self._live[1]))
        weakref.finalize(storage, self._freed, key, grows, amount)

    def _freed(self, key: int, grows: bool, amount: int) -> None:
        self._known.discard(key)
        self._live[grows] -= amount


class _DeviceKernels(TorchFunctionMode):
    """Runs what a GPU would: a fused attention, and CUDA's autocast of normalisations.

    Which attention kernel torch takes depends on the machine. The fused ones all keep query, key,
    value, output and one number per query; without a device, torch would count attention written
    out, with its matrix of scores.

    Args:
        dtype: What autocast casts to; `None` without autocast.
        like_cuda: Whether normalisations compute and return float32 under autocast.
    """

    def __init__(self, dtype: torch.dtype | None, *, like_cuda: bool) -> None:
        super().__init__()
        self._dtype = dtype
        self._norms = (F.group_norm, F.layer_norm) if like_cuda else ()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        casts = torch.is_autocast_enabled("cpu")
        if func is F.scaled_dot_product_attention:
            query, key, value = (x.to(self._dtype) if casts else x for x in args[:3])
            return _ATTENTION(query, key, value, None, True)[0]
        if casts and func in self._norms:
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)


def autocast(precision: str) -> contextlib.AbstractContextManager:
    """The CPU's autocast for the precision of a run."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()


def _attention_backward_flops(
    gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **kw: Any
) -> int:
    # Fused kernels recompute the scores, but that is their choice and not the model's work.
    return 2 * sdpa_flop_count(query, key, value)


_FORMULAS = {
    torch.ops.aten._scaled_dot_product_efficient_attention_backward: _attention_backward_flops
}
