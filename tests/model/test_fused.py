"""The fused kernels against the operations they stand for, run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from tests.model.families import backbone, tokenizer
from tests.slow import slow_but

pytest.importorskip("triton", reason="Triton does not come with torch on this platform")
from captune.model.attention import packed_attention
from captune.model.blocks import LeanOptions, Overwrite
from captune.model.fused import Rows, add_norm

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compiles the kernels, for tensors of its own")


@pytest.mark.parametrize("residual", slow_but(lambda kind: kind == torch.float32, [torch.float32, torch.bfloat16]))
@pytest.mark.parametrize(
    ("added", "overwrite", "bias", "width"),
    [
        pytest.param(True, (2, 4, 3), True, 48, id="last tokens of every image"),
        pytest.param(True, (1, 12, 1), True, 64, id="a shared beginning, once"),
        pytest.param(True, (1, 6, 2), False, 32, id="positions 1 and 2 of every prompt"),
        pytest.param(False, (2, 4, 3), True, 48, id="nothing added"),
        pytest.param(True, None, True, 40, id="nothing overwritten"),
        pytest.param(False, None, True, 16, id="norm alone"),
    ],
)
def test_the_kernel_is_add_overwrite_and_norm(
    residual: torch.dtype, added: bool, overwrite: tuple[int, int, int] | None, bias: bool, width: int
) -> None:
    generator = torch.Generator().manual_seed(width)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows, n = 12, 2
    x = draw(rows, width).to(residual).requires_grad_()
    plus = draw(rows, width).bfloat16().requires_grad_() if added else None
    vectors = draw(n, width).requires_grad_() if overwrite else None
    weight, shift = draw(width), draw(width) if bias else None
    pull_y, pull_h = draw(rows, width), draw(rows, width)
    leaves = [leaf for leaf in (x, plus, vectors) if leaf is not None]

    def gradients(y: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((y.float() * pull_y).sum() + (h.float() * pull_h).sum(), leaves)

    y, h = add_norm(x, plus, vectors, Rows(*overwrite) if overwrite else None, weight, shift, 1e-5, torch.float32)
    found = gradients(y, h)
    z = x if plus is None else (x.float() + plus.float()).to(residual)
    if vectors is not None and overwrite is not None:
        z = Overwrite(vectors, *overwrite)(z)
    want_h = F.layer_norm(z.float(), (width,), weight, shift, 1e-5)
    want = gradients(z, want_h)
    exact = residual == torch.float32
    # The interpreter rounds to bf16 by cutting off, a GPU to the nearest.
    torch.testing.assert_close(y, z, rtol=0 if exact else 1e-2, atol=0 if exact else 1e-2)
    torch.testing.assert_close(h, want_h, rtol=1e-5 if exact else 4e-2, atol=1e-5 if exact else 4e-2)
    for got, wanted in zip(found, want, strict=True):
        loose = not exact or got.dtype == torch.bfloat16
        torch.testing.assert_close(
            got.float(), wanted.float(), rtol=4e-2 if loose else 1e-4, atol=8e-2 if loose else 1e-4
        )


@pytest.mark.parametrize(
    ("length", "causal", "dtype"),
    [
        *slow_but(
            lambda length, causal, _: causal == (length in (16, 52)),
            itertools.product((5, 16, 52, 64), (False, True), (torch.float32,)),
        ),
        (52, True, torch.float16),  # the interpreter multiplies no bf16
    ],
)
def test_packed_attention_is_attention(length: int, causal: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(length)
    sequences, heads, depth = 3, 2, 32
    rows, width = sequences * length, heads * depth
    qkv = torch.randn(rows, 3 * width, generator=generator).to(dtype).requires_grad_()
    pull = torch.randn(rows, width, generator=generator)
    out = packed_attention(qkv, sequences, heads, causal=causal)
    (found,) = torch.autograd.grad((out.float() * pull).sum(), qkv)
    q, k, v = (part.view(sequences, length, heads, depth).transpose(1, 2) for part in qkv.float().chunk(3, dim=-1))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(rows, width)
    (wanted,) = torch.autograd.grad((want * pull).sum(), qkv)
    rtol, atol = (1e-4, 1e-4) if dtype == torch.float32 else (4e-2, 1e-1)
    torch.testing.assert_close(out.float(), want, rtol=rtol, atol=atol)
    torch.testing.assert_close(found.float(), wanted.float(), rtol=rtol, atol=atol)


def test_class_prompts_may_own_fewer_tokens_than_their_shared_beginning_has_vectors() -> None:
    found = []
    for fused in (True, False):
        tower = backbone({}, options=LeanOptions(fused=fused, share_prefix=True)).text_tower
        assert tower is not None
        plan = tower.plan(tokenizer(["abcdef x", "abcdef y", "abcdef z"]), 4)
        assert (len(plan.shared_P), plan.own_KS.shape[1]) == (7, 2)
        vectors = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        features = tower(plan, vectors)
        (gradient,) = torch.autograd.grad((features * torch.arange(features.numel()).view_as(features)).sum(), vectors)
        found.append((features, gradient))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
