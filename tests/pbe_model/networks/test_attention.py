"""Attention backends against each other, and the choice between them where xformers fails."""

import sys
import types

import pytest
import torch

from pbe_model.networks.attention import (
    BACKENDS,
    reference_attention,
    sdpa_attention,
    select_attention,
    xformers_attention,
    xformers_works,
)

from ..small import noise


@pytest.mark.parametrize(("queries", "keys", "heads"), [(9, 9, 1), (9, 5, 4), (1, 7, 8)])
def test_sdpa_equals_the_reference(queries, keys, heads):
    q, k, v = noise(2, queries, 32), noise(2, keys, 32, seed=1), noise(2, keys, 32, seed=2)
    ours = sdpa_attention(q, k, v, heads)
    assert ours.shape == (2, queries, 32)
    torch.testing.assert_close(ours, reference_attention(q, k, v, heads), rtol=1e-5, atol=1e-6)


def test_the_reference_is_a_weighted_mean_of_the_values_per_head():
    """One query, two keys, two heads: head 0 is torn to the first key, head 1 to the second."""
    q = torch.tensor([[[100.0, 0.0, 100.0, 0.0]]])
    k = torch.tensor([[[1.0, 0.0, -1.0, 0.0], [-1.0, 0.0, 1.0, 0.0]]])
    v = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]])
    expected = torch.tensor([[[1.0, 2.0, 7.0, 8.0]]])
    torch.testing.assert_close(reference_attention(q, k, v, 2), expected)


def test_xformers_gets_its_own_layout(monkeypatch):
    """A peer that takes xformers' layout (B, N, H, D), as its documentation writes the formula."""

    def by_the_book(q, k, v):
        assert all(x.is_contiguous() for x in (q, k, v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        return (weights @ v).transpose(1, 2)

    _install_xformers(monkeypatch, by_the_book)
    q, k, v = noise(2, 6, 24), noise(2, 5, 24, seed=1), noise(2, 5, 24, seed=2)
    torch.testing.assert_close(
        xformers_attention(q, k, v, 3), reference_attention(q, k, v, 3), rtol=1e-5, atol=1e-6
    )


def test_no_xformers_on_the_cpu_whether_installed_or_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)  # any import of it raises ImportError
    monkeypatch.delitem(sys.modules, "xformers.ops", raising=False)
    assert not xformers_works("cpu")
    assert select_attention("auto", "cpu") is sdpa_attention
    with pytest.raises(ValueError, match=r"xformers .* cpu .*'sdpa'"):
        select_attention("xformers", "cpu")


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("No operator found for `memory_efficient_attention_forward`"),
        RuntimeError("CUDA error: no kernel image is available"),
        ImportError("libcudart.so"),
        OSError("undefined symbol"),
        AttributeError("module 'torch' has no attribute"),
    ],
)
def test_an_xformers_that_imports_but_finds_no_kernel_is_passed_over(monkeypatch, error):
    """As a build for another torch does. Only the probe's device is faked: the call is real."""

    def no_kernel(q, k, v):
        raise error

    _install_xformers(monkeypatch, no_kernel)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, device, **kw: zeros(*a, device="cpu", **kw))
    assert not xformers_works("cuda")
    assert select_attention("auto", "cuda") is sdpa_attention
    with pytest.raises(ValueError, match=r"xformers .* cuda"):
        select_attention("xformers", "cuda")


def test_a_working_xformers_is_taken_on_cuda(monkeypatch):
    _install_xformers(monkeypatch, lambda q, k, v: v)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, device, **kw: zeros(*a, device="cpu", **kw))
    assert select_attention("auto", "cuda") is xformers_attention
    assert select_attention("xformers", "cuda") is xformers_attention


@pytest.mark.skipif(
    not xformers_works("cuda" if torch.cuda.is_available() else "cpu"),
    reason="needs CUDA, xformers",
)
def test_the_real_xformers_equals_the_reference():
    q, k, v = (noise(2, 64, 64, seed=i).cuda().half() for i in range(3))
    ours = xformers_attention(q, k, v, 4).float()
    theirs = reference_attention(q.float(), k.float(), v.float(), 4)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


def test_choice_by_name():
    assert select_attention("sdpa") is sdpa_attention
    for unknown in ("flash", "reference"):  # the latter is for comparisons, not for users
        with pytest.raises(ValueError) as caught:
            select_attention(unknown)
        assert all(repr(name) in str(caught.value) for name in (unknown, "auto", *BACKENDS))


def _install_xformers(monkeypatch, attention):
    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = attention
    package.ops = ops
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
