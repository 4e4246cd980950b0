"""What a CUDA graph asks of a run, as far as a machine without a card can tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pbe_model import PaintByExample
from pbe_model.config import ScheduleConfig
from pbe_model.sampling.schedule import NoiseSchedule
from training.stages import graphs
from training.stages.loss import DiffusionLoss, FirstStageLoss

from ..runs import SMALL, run_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class _Copies(TorchDispatchMode):
    """Notes the operations that take a tensor of the CPU to a card."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, made = (
            {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
            for tree in ((args, kwargs), out)
        )
        if "cpu" in given and "cuda" in made:
            self.found.append(str(func))
        return out


def test_losses_copy_nothing_from_the_cpu() -> None:
    # Recording a graph fails at such a copy. Tensors are fake, so no card is needed.
    schedule = NoiseSchedule.linear(ScheduleConfig(prediction="v", zero_terminal_snr=True))
    assert schedule.zero_terminal_snr and len(schedule.log_sigmas)  # on the CPU, beforehand
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), CUDA:
        model = PaintByExample(SMALL)
        latent, mask = torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8)
        side = SMALL.exemplar.image_size
        batch = {
            "latent": latent,
            "masked_latent": latent,
            "keep_mask": mask,
            "noise": latent,
            "exemplar": torch.zeros(2, 3, side, side),
            "silhouette": torch.zeros(2, 1, side, side),
            "timestep": torch.zeros(2, dtype=torch.long),
            "drop": torch.zeros(2, dtype=torch.bool),
        }
        loss = DiffusionLoss(
            model.unet,
            model.encoder,
            schedule,
            min_snr=5.0,
            thumbnail_weight=1.0,
            keep_weight=0.1,
            compiled=True,
        )
        first = FirstStageLoss(model.vae, kl_weight=1e-6)
        image = torch.zeros(2, 3, SMALL.resolution, SMALL.resolution)
        factor = SMALL.resolution // SMALL.vae.downscale
        pictures = {"image": image, "noise": torch.zeros(2, 4, factor, factor)}
        loss(batch)  # the schedule's tables are copied once
        with _Copies() as copies:
            loss(batch)
            first(pictures)
            assert copies.found == []
            image.new_tensor([1.0, 2.0])
            assert copies.found != []


@pytest.mark.parametrize(
    ("options", "device", "processes", "words"),
    [
        ({}, CPU, 1, "cuda_graphs needs a CUDA card, and this is cpu; set it to false"),
        ({}, CUDA, 2, "cuda_graphs needs one process, and there are 2"),
        ({"accumulate": 2}, CUDA, 1, "cuda_graphs needs accumulate = 1, and it is 2"),
        ({"precision": "fp16"}, CUDA, 1, "cuda_graphs needs precision 'bf16' or 'no', not 'fp16'"),
    ],
)
def test_what_a_run_must_have(
    photos: Path, tmp_path: Path, options: dict, device: torch.device, processes: int, words: str
) -> None:
    config = run_config(photos, tmp_path, cuda_graphs=True, **options)
    with pytest.raises(ValueError, match=words):
        graphs.check(config, device, processes)
