"""Sizes of the parts of Paint by Example, and the three named configurations.

`V1` is the published model (Stable Diffusion 1.4 widths, CLIP ViT-L/14; arXiv 2211.13227, section 4
and the official `configs/v1.yaml`). The others have the same architecture, narrower: `DEMO` is the
model bundled with this package, at 128 pixels and with latents of 16 channels, `TINY` works at 64
pixels and trains on two CPU cores in two hours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args

from .untrusted import shown

Tokens = Literal["class", "all"]
Prediction = Literal["epsilon", "v"]

# Files may claim anything: the largest values of entries that have no other limit.
_LARGEST = 65536
_LARGEST_OF = {"num_res_blocks": 16, "num_layers": 128, "mapper_layers": 128, "resolution": 2048}
MOST_LEVELS = 8
"""Most levels of resolution that a denoiser or first stage may have."""

_VAE_GROUPS = 32  # groups of the first stage's group normalisations


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Denoiser: nine latent channels in, predicted noise (or v) out."""

    in_channels: int = 9
    out_channels: int = 4
    model_channels: int = 320
    num_res_blocks: int = 2
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    attention_resolutions: tuple[int, ...] = (1, 2, 4)
    """Downsampling factors, relative to the latent, of the levels with transformer blocks."""
    num_heads: int = 8
    context_dim: int = 768
    norm_groups: int = 32
    """Groups of the group normalisations. Narrow models take fewer: with a channel or two in a
    group, the last normalisation would remove the mean and scale of the noise to be predicted."""


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """First stage (AutoencoderKL): pixels to latents and back."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    scale_factor: float = 0.18215
    """Latents are multiplied by this after encoding, so that they have about unit variance."""

    @property
    def downscale(self) -> int:
        """Width of a latent cell in pixels."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True, kw_only=True)
class ExemplarConfig:
    """Image condition: CLIP vision tower, mapper, LayerNorm; `UNetConfig.context_dim` follows."""

    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mapper_layers: int = 5
    mapper_heads: int = 1


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Noise schedule: betas linear in their square root (the "linear" of latent diffusion).

    Attributes:
        prediction: What the denoiser predicts from `x = sqrt(a) * x_0 + sqrt(1 - a) * eps`: the
            noise `"epsilon"`, or `"v"`, `sqrt(a) * eps - sqrt(1 - a) * x_0` (arXiv 2202.00512).
        zero_terminal_snr: Rescale the betas so that the last timestep is pure noise (arXiv
            2305.08891, section 3.1). Predicting the noise is trivial there, so this needs `"v"`.
    """

    num_timesteps: int = 1000
    linear_start: float = 0.00085
    linear_end: float = 0.012
    prediction: Prediction = "epsilon"
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        _check_choice("prediction", self.prediction, Prediction)
        if type(self.zero_terminal_snr) is not bool:
            raise ValueError(
                f"zero_terminal_snr is {shown(self.zero_terminal_snr)}; give true or false"
            )
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "zero_terminal_snr does not go with prediction 'epsilon', which tells nothing "
                "about the picture where there is no signal; use prediction 'v'"
            )
        if self.zero_terminal_snr and self.num_timesteps == 1:
            raise ValueError("zero_terminal_snr needs at least 2 timesteps, but num_timesteps is 1")


@dataclass(frozen=True, kw_only=True)
class EditDefaults:
    """How a model paints when nothing else is said; of the published one by default.

    Attributes:
        steps: Sampling steps.
        similarity: Guidance scale.
        sampler: One of `sampling.samplers.SAMPLERS`.
    """

    steps: int = 20
    similarity: float = 5.0
    sampler: str = "dpmpp_2m"

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, str):
            raise ValueError(f"sampler is {shown(self.sampler)}; give the name of one")


@dataclass(frozen=True, kw_only=True)
class PBEConfig:
    """Everything that fixes the architecture of a checkpoint, and how it paints best.

    Attributes:
        tokens: `"class"` conditions on CLIP's class token alone (the paper's information
            bottleneck), `"all"` on every token (the paper's ablation).
        resolution: Side in pixels that the model was trained at.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    exemplar: ExemplarConfig = field(default_factory=ExemplarConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    tokens: Tokens = "class"
    resolution: int = 512
    defaults: EditDefaults = field(default_factory=EditDefaults)

    def __post_init__(self) -> None:
        _check_choice("tokens", self.tokens, Tokens)
        _check_numbers(self)
        self._check_parts()

    def _check_parts(self) -> None:
        """Raise `ValueError` where numbers contradict each other, as in damaged files."""
        unet, vae, tower, schedule = self.unet, self.vae, self.exemplar, self.schedule
        widths = [unet.model_channels * mult for mult in unet.channel_mult]
        attending = [w for i, w in enumerate(widths) if 2**i in unet.attention_resolutions]
        stages = [vae.ch, *(vae.ch * mult for mult in vae.ch_mult)]
        for name, number, multiples in (
            ("norm_groups", unet.norm_groups, [unet.model_channels, *widths]),
            ("num_heads", unet.num_heads, [*attending, widths[-1]]),
            ("the 32 groups of the first stage", _VAE_GROUPS, stages),
            ("num_heads", tower.num_heads, [tower.hidden_size]),
            ("mapper_heads", tower.mapper_heads, [tower.hidden_size]),
            ("patch_size", tower.patch_size, [tower.image_size]),
            ("the model's size multiple", self.size_multiple, [self.resolution]),
            ("the two halves of a timestep embedding", 2, [unet.model_channels]),
        ):
            for multiple in multiples:
                if multiple % number:
                    raise ValueError(f"{multiple} is not divisible by {name} ({number})")
        latent, keep_mask = vae.z_channels, 1
        if (unet.in_channels, unet.out_channels) != (2 * latent + keep_mask, latent):
            raise ValueError(
                f"a denoiser of {unet.in_channels} channels in and {unet.out_channels} out does "
                f"not go with latents of {latent}, which take {2 * latent + keep_mask} and {latent}"
            )
        if not schedule.linear_start <= schedule.linear_end < 1:
            raise ValueError(
                f"the noise schedule goes from {schedule.linear_start} to {schedule.linear_end}; "
                "it must rise and stay below 1"
            )

    @property
    def size_multiple(self) -> int:
        """Sides of images must be multiples of this many pixels."""
        return self.vae.downscale * 2 ** (len(self.unet.channel_mult) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, as stored in checkpoints; usual `defaults` are left out."""
        values = asdict(self)
        if self.defaults == EditDefaults():
            del values["defaults"]  # which earlier versions would not know
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PBEConfig:
        """Inverse of `to_dict`.

        Raises:
            ValueError: An unknown entry (the error lists the known ones), or a value of the wrong
                type or out of range.
        """
        return _from_dict(cls, values)


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(
            f"unknown {name} {shown(repr(value))}; choose from {list(get_args(choices))}"
        )


def _check_numbers(config: Any) -> None:
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            _check_numbers(value)
        elif isinstance(entry.default, (str, bool)):
            continue  # checked by the class that has it
        elif isinstance(value, tuple) != isinstance(entry.default, tuple):
            kind = "a list of numbers" if isinstance(entry.default, tuple) else "one number"
            raise ValueError(f"{entry.name} is {shown(value)}; give {kind}")
        elif isinstance(entry.default, float):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and 0 < value <= _LARGEST):  # which NaN is not either
                raise ValueError(
                    f"{entry.name} is {shown(value)}; give a number above 0, up to {_LARGEST}"
                )
        else:
            counts = value if isinstance(value, tuple) else (value,)
            largest = _LARGEST_OF.get(entry.name, _LARGEST)
            if any(type(count) is not int or not 1 <= count <= largest for count in counts):
                raise ValueError(
                    f"{entry.name} is {shown(value)}; give whole numbers from 1 to {largest}"
                )
            if isinstance(entry.default, tuple) and not 1 <= len(counts) <= MOST_LEVELS:
                raise ValueError(
                    f"{entry.name} has {len(counts)} numbers; give 1 to {MOST_LEVELS} of them"
                )


def _from_dict(cls: type, values: dict[str, Any]) -> Any:
    parts = {"unet": UNetConfig, "vae": VAEConfig, "exemplar": ExemplarConfig,
             "schedule": ScheduleConfig, "defaults": EditDefaults}  # fmt: skip
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"unknown configuration entries {shown(unknown)} in {cls.__name__}; it has "
            f"{sorted(known)}"
        )
    arguments = {}
    for name, value in values.items():
        if cls is PBEConfig and name in parts:
            if not isinstance(value, dict):
                raise ValueError(
                    f"configuration entry {name!r} is {shown(value)}; give a table of entries"
                )
            value = _from_dict(parts[name], value)
        elif isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return cls(**arguments)


V1 = PBEConfig()
TINY = PBEConfig(
    unet=UNetConfig(
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2, 4, 5),
        attention_resolutions=(2, 4, 8),
        context_dim=192,
        norm_groups=8,
    ),
    vae=VAEConfig(ch=64, ch_mult=(1, 1), num_res_blocks=1, scale_factor=0.484325),
    exemplar=ExemplarConfig(
        image_size=64, patch_size=8, hidden_size=192, num_layers=4, num_heads=3
    ),
    resolution=64,
)
DEMO = PBEConfig(
    unet=UNetConfig(
        in_channels=33,
        out_channels=16,
        model_channels=64,
        num_res_blocks=1,
        channel_mult=(1, 2, 2, 2),
        attention_resolutions=(2, 4, 8),
        num_heads=4,
        context_dim=384,
        norm_groups=16,
    ),
    vae=VAEConfig(ch=32, ch_mult=(1, 1, 2, 3), num_res_blocks=1, z_channels=16),
    # One patch: the class token sees the whole picture as one vector.
    exemplar=ExemplarConfig(
        image_size=32, patch_size=32, hidden_size=256, num_layers=2, num_heads=4, mapper_layers=1
    ),
    resolution=128,
)
CONFIGS: dict[str, PBEConfig] = {"v1": V1, "demo": DEMO, "tiny": TINY}
