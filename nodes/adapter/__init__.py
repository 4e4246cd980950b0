"""Our models as the host's; the only place that touches ComfyUI's internals.

The denoiser becomes a native MODEL around the host's own UNet (`denoiser`), the first stage a
native VAE (`first_stage`), the exemplar encoder an object with a model patcher of its own
(`encoder`). So the host's samplers, previews, cancel button, LoRAs, patches, memory manager and
dtype flags work on them as on its own models.
"""

from .adapters import with_adapter
from .conditioning import Conditioning, check_order, check_tagged, separate, tagged
from .denoiser import load_model, pbe_config
from .encoder import HostEncoder
from .first_stage import encode_masked, latent_format, load_vae
from .page import show
from .sampling import check_parts, sample
from .saving import denoiser_weights, held_as, not_weights

__all__ = [
    "Conditioning",
    "HostEncoder",
    "check_order",
    "check_parts",
    "check_tagged",
    "denoiser_weights",
    "encode_masked",
    "held_as",
    "latent_format",
    "load_model",
    "load_vae",
    "not_weights",
    "pbe_config",
    "sample",
    "separate",
    "show",
    "tagged",
    "with_adapter",
]
