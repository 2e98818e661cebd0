"""The compiled top-k and top-p masks against their plain twins and against vLLM's."""

from __future__ import annotations

import pytest
import torch

from panoserve.kernels import truncation

needs_compiler = pytest.mark.skipif(
    not truncation.available(torch.device("cpu")), reason="needs a C compiler at installation"
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
    expected = truncation.mask_below_top_k_reference(logits, k)
    truncation.mask_below_top_k(logits, k)
    assert torch.equal(logits, expected)


@needs_compiler
def test_minus_infinity_may_be_among_the_largest() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 2.0, -torch.inf]])
    truncation.mask_below_top_k(logits, torch.tensor([3]))
    assert logits.tolist() == [[1.0, -torch.inf, 2.0, -torch.inf]]


def test_the_reference_is_vllms() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_only

    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([1, 7, 49, 50])
    expected = apply_top_k_only(logits.clone(), k.clone())
    assert torch.equal(truncation.mask_below_top_k_reference(logits, k), expected)


def nearly_all(logits: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """p of each row that keeps as many codes, but is far from keeping one more or one less."""
    kept = []
    for row, share in zip(logits, p.tolist(), strict=True):
        sums = row.double().softmax(0).sort(descending=True).values.cumsum(0)
        last = int((sums < share).sum())
        kept.append(float(sums[last] + (sums[last - 1] if last else 0)) / 2)
    return torch.tensor(kept, dtype=torch.float64)


@needs_compiler
@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0, 60.0])
@pytest.mark.parametrize("columns", [1, 2, 17, 300, 2500])
def test_the_nucleus_is_that_of_the_reference(columns: int, spread: float) -> None:
    """Probabilities are float32 in the one and float64 in the other, so p lies between two sums of them."""
    generator = torch.Generator().manual_seed(columns)
    logits = torch.randn(40, columns, generator=generator) * spread
    p = nearly_all(logits, torch.rand(40, generator=generator))
    p[::5] = 1.0
    expected = truncation.mask_below_top_p_reference(logits, p)
    truncation.mask_below_top_p(logits, p)
    assert torch.equal(logits, expected)


@needs_compiler
@pytest.mark.parametrize("mask", ["mask_below_top_p", "mask_below_top_p_reference"])
def test_equal_values_are_kept_together_and_one_code_always(mask: str) -> None:
    rows = [[0.0, 3.0, 3.0, -torch.inf], [5.0, 5.0, 5.0, 5.0], [-1.0, -0.0, 0.0, 1e30], [2.0, 1.0, 0.0, 0.5]]
    logits = torch.tensor(rows)
    made = getattr(truncation, mask)(logits, torch.tensor([0.5, 0.1, 1e-9, 1.0], dtype=torch.float64))
    kept = (logits if made is None else made).isfinite().tolist()
    assert kept == [[False, True, True, False], [True] * 4, [False, False, False, True], [True] * 4]


@needs_compiler
def test_a_masked_row_may_be_masked_again() -> None:
    """Top-k comes first: what it left is a whole."""
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    truncation.mask_below_top_k(logits, torch.tensor([2]))
    truncation.mask_below_top_p(logits, torch.tensor([0.7], dtype=torch.float64))
    assert logits.isfinite().tolist() == [[True, False, False, False]]


def test_the_nucleus_of_the_reference_is_vllms() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    p = nearly_all(logits, torch.linspace(0.05, 0.99, 6))
    expected = apply_top_k_top_p_pytorch(logits.clone(), None, p.float())
    assert torch.equal(truncation.mask_below_top_p_reference(logits, p), expected)
