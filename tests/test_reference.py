"""The plain PyTorch model reproduces upstream's golden vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_models import golden_model

from panoserve.models.reference import ReferenceLane, rope_table, rotate


def greedy(prefix: torch.Tensor, model: Any, guidance: float, interval: int = -1) -> list[int]:
    """Draw one crop greedily; guidance as facts.md 1.8."""
    lane = ReferenceLane(model, prefix)
    codes: list[int] = []
    for k in range(model.config.grid.codes):
        logits = lane.feed(codes[-1:])
        mixed = logits[0]
        if guidance > 1 and (interval < 0 or k <= interval + 1):
            mixed = logits[1] + guidance * (logits[0] - logits[1])
        codes.append(int(mixed.argmax()))
    return codes


@torch.inference_mode()
def test_class_conditional_greedy(golden: dict[str, Any]) -> None:
    case = golden["c2i"]
    model = golden_model(case)
    for index, label in enumerate(case["labels"]):
        cond = model.cls_embedding(label[None])
        uncond = model.cls_embedding(torch.tensor([model.config.num_classes]))
        assert greedy(cond, model, 1.0) == case["greedy_cfg1"][index].tolist()
        both = torch.cat([cond, uncond])
        assert greedy(both, model, 2.0, interval=4) == case["greedy_cfg2_interval4"][index].tolist()


@torch.inference_mode()
def test_teacher_forcing(golden: dict[str, Any]) -> None:
    case = golden["c2i"]
    model = golden_model(case)
    codes = case["greedy_cfg1"].long()
    logits = model(codes[:, :-1], model.cls_embedding(case["labels"]))
    torch.testing.assert_close(logits, case["teacher_logits"], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_captions_of_different_length(golden: dict[str, Any]) -> None:
    """Dropping the padding equals upstream's left padding with a mask, in the lane and in teacher forcing."""
    case = golden["t2i"]
    model = golden_model(case)
    codes = case["greedy_cfg1"].long()
    padded = model(codes[:, :-1], model.cls_embedding(case["cond"]), case["mask"])
    for index, mask in enumerate(case["mask"]):
        features = case["cond"][index][mask.bool()]
        assert greedy(model.cls_embedding(features[None]), model, 1.0) == codes[index].tolist()
        assert padded[index].argmax(-1).tolist() == codes[index].tolist()


def test_rope_values_of_the_fact_sheet() -> None:
    """facts.md 1.3: hd 64, row 1, column 2."""
    row = rope_table(16, 64)[16 * 1 + 2]
    torch.testing.assert_close(row[0], torch.tensor([0.5403023, 0.8414710]))
    torch.testing.assert_close(row[1, 0], torch.tensor(0.8460091))
    torch.testing.assert_close(row[16], torch.tensor([-0.4161468, 0.9092974]))
    torch.testing.assert_close(row[17, 0], torch.tensor(0.4314629))


@pytest.mark.parametrize(("rows", "columns"), [(0, -5), (3, 0), (-2, 7)])
def test_a_shifted_key_equals_the_key_at_the_new_place(rows: int, columns: int) -> None:
    table = rope_table(16, 32)
    key = torch.randn(1, 1, 2, 32)
    old_row, old_column = 8, 8
    at = lambda r, c: table[None, r * 16 + c]  # noqa: E731
    moved = rotate(rotate(key, at(old_row, old_column)), ReferenceLane._turn(table, 16, rows, columns, False)[None])
    torch.testing.assert_close(moved, rotate(key, at(old_row + rows, old_column + columns)), atol=1e-5, rtol=1e-5)
