"""An edit in a process that may have hardly more memory; run by `test_memory`.

Prints, as JSON, how often it failed for want of memory before there was enough, how many rows the
networks were then given, in turn, and how far the images are from those painted without a limit.
"""

from __future__ import annotations

import json
import resource

import torch

from pbe_model import CropSettings, edit
from pbe_model.memory import is_out_of_memory

from .small import small_model, uniform

IMAGES = 16


def main() -> None:
    """Raise the limit by little until an edit goes through."""
    torch.set_num_threads(1)
    model, photo = small_model(), uniform(128, 128, 3)
    hole = torch.zeros(128, 128)
    hole[30:100, 30:100] = 1
    exemplar, settings = uniform(20, 12, 3, seed=1), CropSettings(resolution=64)

    def paint(count: int) -> torch.Tensor:
        return edit(model, photo, hole, exemplar, steps=1, num_images=count, crop=settings).images

    # The kernels of every number of rows: to make them takes address space beyond what tensors do.
    for count in (1, 2, 4, 8):
        paint(count)
    seen: dict[str, list[int]] = {"unet": [], "decoder": []}
    for name, module in (("unet", model.unet), ("decoder", model.vae.decoder)):
        module.register_forward_pre_hook(
            lambda _, given, name=name: seen[name].append(len(given[0]))
        )
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    failures, more = 0, 0
    while True:
        resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))
        seen["unet"], seen["decoder"] = [], []
        try:
            images = paint(IMAGES)
            break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failures += 1
            more = max(more * 3 // 2, 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    rows = dict(seen)
    difference = (images - paint(IMAGES)).abs().max().item()
    print(json.dumps({"failures": failures, "more": more, "difference": difference, **rows}))
