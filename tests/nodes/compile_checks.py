"""TorchCompileModel with its real compiler, on our MODEL and on the host's own SD 1.5.

Runs inside the host's interpreter, see `checks.py`; `test_native.py` starts it if it is asked to,
since it compiles C++. Its results: the largest difference of latents, and the number of graphs.
"""

from dataclasses import replace

import patch_checks  # starts the host's modules

# isort: split
import comfy_extras.nodes_torch_compile
import torch
from torch._dynamo.utils import counters

# One level of SD 1.5: what there is to compile is the same, with fewer repeats of it.
patch_checks.SIZES = replace(
    patch_checks.SIZES,
    unet=replace(
        patch_checks.SIZES.unet, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(1,)
    ),
)


def results() -> dict[str, float]:
    # The attention of a card; that of `--cpu` asks for free memory, which no compiler can follow.
    attention = patch_checks.sampling_of("ModelAttentionBackend", "pytorch attention")
    compiled = patch_checks.node(comfy_extras.nodes_torch_compile, "TorchCompileModel", "inductor")
    worst = 0.0
    with torch.inference_mode():
        mine, theirs = patch_checks.our_model(0), patch_checks.host_model(0)
        for model, tokens in ((mine, 1), (theirs, 1), (mine, 5)):
            found = patch_checks.latents(compiled(attention(model)), tokens)
            plain = patch_checks.latents(theirs, tokens)
            worst = max(worst, patch_checks.relative(found, plain))
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    return {"difference": worst, "graphs": graphs, "breaks": breaks}
