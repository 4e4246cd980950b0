"""Any architecture, type and layout: a conversion there and back gives the same numbers."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pbe_model import PBEConfig
from pbe_model.checkpoints.load import read
from pbe_model.checkpoints.save import convert, save_model
from pbe_model.config import ExemplarConfig, ScheduleConfig, UNetConfig, VAEConfig

from ..pbe_model.small import small_model
from .examples import bounded, examples, refusal

SUFFIXES = {"safetensors": ".safetensors", "official": ".ckpt", "diffusers": ""}
DTYPES = (None, torch.float32, torch.float16, torch.bfloat16)


@st.composite
def configs(draw: st.DrawFn) -> PBEConfig:
    """Small architectures; about half of them are such as diffusers can have."""
    common = draw(st.booleans())
    levels = draw(st.integers(1, 3))
    widths = draw(st.lists(st.integers(1, 2), min_size=levels, max_size=levels))
    attending = [2**i for i in range(levels) if draw(st.booleans())]
    latent = 4 if common else draw(st.sampled_from((3, 4, 8)))
    tokens = "class" if common else draw(st.sampled_from(("class", "all")))
    steepness = 0.012 if common else draw(st.sampled_from((0.012, 0.02)))
    v = draw(st.booleans())
    return PBEConfig(
        unet=UNetConfig(
            in_channels=2 * latent + 1,
            out_channels=latent,
            model_channels=32,
            num_res_blocks=draw(st.integers(1, 2)),
            channel_mult=tuple(widths),
            attention_resolutions=tuple(attending or [1]),
            context_dim=draw(st.sampled_from((16, 24))),
            norm_groups=32 if common else draw(st.sampled_from((8, 16, 32))),
            num_heads=8 if common else draw(st.sampled_from((2, 4, 8))),
        ),
        vae=VAEConfig(
            ch=32,
            ch_mult=tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=2))),
            num_res_blocks=1,
            z_channels=latent,
            scale_factor=draw(st.sampled_from((0.18215, 0.5))),
        ),
        exemplar=ExemplarConfig(
            image_size=16,
            patch_size=8,
            hidden_size=64,
            num_layers=5 if common else draw(st.sampled_from((1, 2, 5))),
            num_heads=1,
            mapper_layers=1 if common else draw(st.integers(1, 2)),
        ),
        schedule=ScheduleConfig(
            linear_end=steepness,
            prediction="v" if v else "epsilon",
            zero_terminal_snr=v and draw(st.booleans()),
        ),
        tokens=tokens,
        resolution=64,
    )


@st.composite
def chains(draw: st.DrawFn) -> list[tuple[str, torch.dtype | None]]:
    """Layouts and types of conversions, one after another."""
    step = st.tuples(st.sampled_from(sorted(SUFFIXES)), st.sampled_from(DTYPES))
    return draw(st.lists(step, min_size=1, max_size=4))


def cast(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}


@examples(3)
@given(config=configs(), chain=chains(), seed=st.integers(0, 99))
def test_conversions_keep_every_number_and_the_configuration(
    config: PBEConfig, chain: list[tuple[str, torch.dtype | None]], seed: int
):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "0.safetensors"
        save_model(source, small_model(config, seed))
        expected = {k: v.clone() for k, v in read(source).tensors.items()}
        for number, (layout, dtype) in enumerate(chain, start=1):
            out = folder / f"{number}{SUFFIXES[layout]}"
            before = set(folder.rglob("*"))
            try:
                with bounded():
                    convert(source, out, layout=layout, dtype=dtype)
            except ValueError as error:
                assert layout != "safetensors", "ours holds all of them"
                refusal(error)
                assert set(folder.rglob("*")) == before
                continue
            expected = cast(expected, dtype)
            source = out
        file = read(source)
        assert file.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert file.tensors[name].dtype == tensor.dtype
            assert torch.equal(file.tensors[name], tensor), name
        # What a layout does not say of how a model paints best is what is usual.
        back = folder / "back.safetensors"
        report = convert(source, back, layout="safetensors")
        assert report.config == replace(config, defaults=report.config.defaults)
