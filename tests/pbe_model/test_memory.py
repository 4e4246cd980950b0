"""Memory that runs out: real allocators fail here, for more than any machine has."""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pbe_model import CropSettings, edit
from pbe_model.memory import in_parts, is_out_of_memory, wanted

from .. import forked
from .limited import main as paint_under_limits
from .small import small_model, uniform

CPU = torch.device("cpu")
TOO_MUCH = 2**60  # bytes


def exhaust() -> object:
    """What torch's own allocator raises."""
    return torch.empty(TOO_MUCH, dtype=torch.uint8)


def raised(work: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as info:
        work()
    return info.value


@pytest.mark.parametrize(
    ("work", "amount"),
    [
        (exhaust, "1,152,921,504,606.8 MB"),
        (lambda: np.zeros(TOO_MUCH, np.uint8), "1.00 EiB"),
        (lambda: bytearray(TOO_MUCH), None),
        (lambda: [None] * (TOO_MUCH // 16), None),
        (lambda: mmap.mmap(-1, TOO_MUCH), None),
    ],
    ids=["torch", "numpy", "bytes", "list", "mapping"],
)
def test_every_allocator_is_understood(work, amount):
    error = raised(work)
    assert is_out_of_memory(error)
    assert wanted(error) == amount


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
        RuntimeError("MPS backend out of memory (allocated: 8 GB). Tried to allocate 20.00 MiB"),
        RuntimeError("[..] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Could not allocate tensor with 9 bytes. There is not enough GPU memory"),
        RuntimeError("unable to mmap 90 bytes from file </m.ckpt>: Cannot allocate memory (12)"),
        RuntimeError("could not create a primitive"),
    ],
    ids=str,
)  # fmt: skip
def test_those_of_other_machines_are_known_by_their_words(error):
    assert is_out_of_memory(error)
    assert "20.00 MiB" not in str(error) or wanted(error) == "20.00 MiB"


def test_other_errors_are_none():
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("could not create a primitive descriptor for a convolution"),
        ValueError("cannot read 'out of memory.png': there is no such file"),
        FileNotFoundError(2, "No such file", "can't allocate memory"),
    ):
        assert not is_out_of_memory(error)


def test_what_it_was_raised_from_counts():
    def read() -> None:
        try:
            exhaust()
        except RuntimeError as error:
            raise ValueError("the picture is damaged") from error

    assert is_out_of_memory(raised(read))


def limited(most: int, seen: list[tuple[int, int]]) -> Callable[[int, int], torch.Tensor]:
    """Work for which there is memory up to some number of rows."""

    def work(first: int, last: int) -> torch.Tensor:
        seen.append((first, last))
        if last - first > most:
            exhaust()
        return torch.arange(first, last)

    return work


@pytest.mark.parametrize(
    ("count", "most", "tried"),
    [
        (5, 5, [(0, 5)]),
        (5, 2, [(0, 5), (0, 3), (0, 2), (2, 4), (4, 5)]),
        (6, 3, [(0, 6), (0, 3), (3, 6)]),
        (3, 1, [(0, 3), (0, 2), (0, 1), (1, 2), (2, 3)]),
        (1, 1, [(0, 1)]),
    ],
)
def test_parts_are_halved_and_stay_in_order(count, most, tried):
    seen: list[tuple[int, int]] = []
    assert in_parts(limited(most, seen), count, device=CPU).tolist() == list(range(count))
    assert seen == tried


def test_where_not_even_one_fits_the_allocators_error_remains():
    seen: list[tuple[int, int]] = []
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        in_parts(limited(0, seen), 4, device=CPU)
    assert seen == [(0, 4), (0, 2), (0, 1)]


def test_other_errors_are_not_tried_again():
    seen = []

    def work(first: int, last: int) -> torch.Tensor:
        seen.append(first)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        in_parts(work, 4, device=CPU)
    assert seen == [0]


# ---- edits -------------------------------------------------------------------------------------

PHOTO, EXEMPLAR = uniform(40, 120, 3), uniform(20, 12, 3, seed=1)
HOLES = torch.zeros(40, 120)
HOLES[12:22, 10:20] = HOLES[12:22, 96:108] = 1


@pytest.mark.parametrize("posterior", ["mode", "sample"])
@pytest.mark.parametrize("part", ["unet", "decoder", "encoder", "all"])
def test_an_edit_that_does_not_fit_is_painted_in_parts(part, posterior):
    """Two crops of three images each, and rows that no longer belong to one image."""
    model = small_model()
    options = {"steps": 2, "num_images": 3, "seed": 4, "region": "each", "strength": 0.9,
               "posterior": posterior, "crop": CropSettings(context=1.2)}  # fmt: skip
    expected = edit(model, PHOTO, HOLES, EXEMPLAR, **options)
    sizes: list[int] = []
    modules = {"unet": model.unet, "decoder": model.vae.decoder, "encoder": model.vae.encoder}
    for name, module in modules.items():
        if part in (name, "all"):
            most = 1 if name == "encoder" else 2

            def refuse(_, given, most=most):
                if len(given[0]) > most:
                    exhaust()
                sizes.append(len(given[0]))

            module.register_forward_pre_hook(refuse)
    steps: list[tuple[int, int]] = []
    found = edit(model, PHOTO, HOLES, EXEMPLAR, **options,
                 callback=lambda index, total, x0: steps.append((index, total)))  # fmt: skip
    assert sizes and max(sizes) <= 2
    torch.testing.assert_close(found.images, expected.images, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.crops, expected.crops, rtol=0, atol=1e-4)
    parts = 3 if part in ("unet", "all") else 1
    assert steps == [(i, 2 * parts) for i in range(2 * parts)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory this way")
@pytest.mark.slow
def test_under_a_real_limit_an_edit_is_painted_in_parts():
    done = forked.run(paint_under_limits)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["unet"]) > 1 or len(found["decoder"]) > 1, found
    assert found["difference"] < 1e-4
