"""The compiled top-k mask against its plain twin and against vLLM's."""

from __future__ import annotations

import pytest
import torch

from panoserve.kernels import top_k

needs_compiler = pytest.mark.skipif(
    not top_k.available(torch.device("cpu")), reason="needs a C compiler at installation"
)


@needs_compiler
@pytest.mark.parametrize("kind", ["normal", "few", "huge", "tiny"])
@pytest.mark.parametrize("columns", [1, 2, 17, 300, 2500])
def test_the_mask_is_that_of_the_reference(columns: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(columns)
    logits = torch.randn(40, columns, generator=generator)
    if kind == "few":  # many equal values, both zeros among them
        logits = (logits.round() * torch.tensor([1.0, -1.0])[torch.arange(columns) % 2]).contiguous()
    elif kind == "huge":
        logits = logits * 1e38
    elif kind == "tiny":
        logits = logits * 1e-40
    k = torch.randint(0, columns + 2, (40,), generator=generator)
    expected = top_k.mask_below_top_k_reference(logits, k)
    top_k.mask_below_top_k(logits, k)
    assert torch.equal(logits, expected)


@needs_compiler
def test_minus_infinity_may_be_among_the_largest() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 2.0, -torch.inf]])
    top_k.mask_below_top_k(logits, torch.tensor([3]))
    assert logits.tolist() == [[1.0, -torch.inf, 2.0, -torch.inf]]


def test_the_reference_is_vllms() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_only

    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([1, 7, 49, 50])
    expected = apply_top_k_only(logits.clone(), k.clone())
    assert torch.equal(top_k.mask_below_top_k_reference(logits, k), expected)
