"""Odd shapes and low precisions through the engine: padded heads (GPT-3B's 100), one stream, bfloat16 and float16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_models import golden_model, random_model, write_folder
from reference_drawer import draw_greedily

from panoserve import Engine, PanoramaRequest
from panoserve.configs.model import ModelConfig, ffn_width
from panoserve.errors import InvalidRequestError
from panoserve.kernels import packed_linear
from panoserve.models.reference import ReferenceModel
from panoserve.redirect.plan import CONTEXTS

pytestmark = pytest.mark.engine

# How far below the reference's best logit a greedy choice may lie. Golden logits span about +-40; rounding every
# activation to 8 (bfloat16) or 11 (float16) bits moves them by about this much.
# An FP8 cache has 4 bits.
LOGIT_GAP = {("bfloat16", "auto"): 1.5, ("float16", "auto"): 0.2, ("bfloat16", "fp8"): 8.0}


def test_padded_heads_and_a_model_without_guidance(tmp_path: Path) -> None:
    """head_dim 100 runs as 112 in both contexts; a model without a null class runs one stream and refuses guidance."""
    config = ModelConfig(
        vocab_size=61,
        hidden_size=200,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=ffn_width(200),
        grid_side=5,
        downsample=16,
        condition="class",
        num_classes=4,
        unconditional=False,
    )
    model = random_model(config, std=0.12)
    base = {"label": 2, "width": 16 * 12, "height": 16 * 5, "stride": 2, "temperature": 0.0}
    with Engine(write_folder(model, tmp_path), dtype="float32", max_lanes=8) as engine:
        requests = [PanoramaRequest(**base, context=context) for context in CONTEXTS]
        for request, result in zip(requests, engine.generate(requests, decode=False, progress=False), strict=True):
            assert result.request.guidance == 1.0
            assert result.codes.tolist() == draw_greedily(model, request).tolist()
        with pytest.raises(InvalidRequestError, match="no unconditional branch"):
            engine.generate([PanoramaRequest(**base, guidance=2.0)])


@torch.inference_mode()
def logit_gaps(model: ReferenceModel, label: int, codes: torch.Tensor) -> torch.Tensor:
    """How far each code of a crop lies below the reference's best, given the codes before it: [N]."""
    flat = codes.flatten()[None]
    logits = model(flat[:, :-1], model.cls_embedding(torch.tensor([label])))[0]
    return logits.max(-1).values - logits.gather(-1, flat[0, :, None])[:, 0]


def check_one_call(engine: Engine, request: PanoramaRequest, codes: torch.Tensor) -> None:
    """All layers of its steps ran in one call, if this machine has the kernels, and one by one they draw the same.

    Looks into an engine of this process; behind another one, as in a run of all tests, it has a process of its own.
    """
    if Engine._in_process is not engine:
        return
    models: list[Any] = []
    engine._engine.collective_rpc(lambda worker: models.append(worker.get_model()))
    [model] = models
    assert (model.decode_steps.layers is not None) == packed_linear.available()
    model.decode_steps = lambda x, rope: None
    [again] = engine.generate([request], decode=False, progress=False)
    assert torch.equal(again.codes, codes)


@pytest.mark.parametrize(("dtype", "cache"), sorted(LOGIT_GAP))
def test_low_precision_stays_close(golden: dict[str, Any], tmp_path: Path, dtype: str, cache: str) -> None:
    if cache == "fp8" and not torch.cpu._is_avx512_supported():
        pytest.skip("vLLM takes FP8 caches with AVX-512 only")
    model = golden_model(golden["c2i"])
    requests = [
        PanoramaRequest(label=label, width=64, height=64, temperature=0.0, guidance=1.0) for label in (3, 7)
    ] + [PanoramaRequest(label=1, width=16 * 10, height=64, stride=3, temperature=0.0, guidance=2.0)]
    with Engine(write_folder(model, tmp_path), dtype=dtype, kv_cache_dtype=cache, max_lanes=8) as engine:
        *crops, panorama = engine.generate(requests, decode=False, progress=False)
        if dtype == "bfloat16":
            check_one_call(engine, requests[-1], panorama.codes)
    for request, crop in zip(requests, crops, strict=False):
        assert request.label is not None
        gaps = logit_gaps(model, request.label, crop.codes)
        assert float(gaps.max()) < LOGIT_GAP[dtype, cache], f"{dtype}, {cache}: {gaps.max():.3f}"
    assert panorama.codes.shape == (4, 10)
    assert int(panorama.codes.min()) >= 0
