"""The vLLM engine draws, token for token, what the plain reference draws; and it cleans up behind itself.

float32 and greedy throughout. The engines live for the whole session (conftest.py): one class-conditional, one
caption-conditional, both with the golden weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_models import golden_model
from reference_drawer import draw_greedily

from panoserve import Engine, Panorama, PanoramaRequest
from panoserve.errors import CacheTooSmallError, InvalidRequestError, PanoramaFailedError, PanoserveError
from panoserve.redirect.layout import plan_of
from panoserve.redirect.plan import CONTEXTS
from panoserve.redirect.simulate import predict

pytestmark = pytest.mark.engine

CROP = 4 * 16  # the golden models' grid has side 4


def width(columns: int) -> int:
    return columns * 16


def free_now(scheduler: Any) -> int:
    return int(scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def free_blocks(engine: Engine) -> int:
    scheduler = engine._engine.engine_core.engine_core.scheduler
    assert not scheduler.requests and not scheduler._panoramas and not scheduler._admission.holdings
    return free_now(scheduler)


def test_golden_class_conditional(class_engine: Engine, golden: dict[str, Any]) -> None:
    """Single crops: upstream's greedy tokens, unguided and guided within an interval."""
    case = golden["c2i"]
    base = {"width": CROP, "height": CROP, "temperature": 0.0}
    labels = [int(label) for label in case["labels"]]
    plain = [PanoramaRequest(label=label, guidance=1.0, **base) for label in labels]
    guided = [PanoramaRequest(label=label, guidance=2.0, guidance_interval=4, **base) for label in labels]
    results = class_engine.generate(plain + guided, decode=False, progress=False)
    expected = [*case["greedy_cfg1"], *case["greedy_cfg2_interval4"]]
    assert [r.codes.flatten().tolist() for r in results] == [codes.tolist() for codes in expected]


def test_golden_captions(caption_engine: Engine, golden: dict[str, Any]) -> None:
    """Captions of 5 and 17 rows in one batch: upstream's greedy tokens."""
    case = golden["t2i"]
    requests = [
        PanoramaRequest(features=features[mask.bool()], width=CROP, height=CROP, temperature=0.0, guidance=1.0)
        for features, mask in zip(case["cond"], case["mask"], strict=True)
    ]
    results = caption_engine.generate(requests, decode=False, progress=False)
    assert [r.codes.flatten().tolist() for r in results] == case["greedy_cfg1"].tolist()


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_panoramas_equal_the_reference(class_engine: Engine, golden: dict[str, Any], context: str, stride: int) -> None:
    """Overlap larger and smaller than half, a last crop that shrinks, guidance, two labels in one batch."""
    model = golden_model(golden["c2i"])
    base = {"height": CROP, "stride": stride, "guidance": 2.0, "temperature": 0.0, "context": context}
    requests = [
        PanoramaRequest(label=label, width=width(columns), **base)
        for label, columns in ((3, 4 + 4 * stride), (7, 4 + 3 * stride + 1))
    ]
    before = free_blocks(class_engine)
    results = class_engine.generate(requests, decode=False, progress=False)
    for request, result in zip(requests, results, strict=True):
        assert result.codes.tolist() == draw_greedily(model, request).tolist()
    assert free_blocks(class_engine) == before


@pytest.mark.parametrize("context", CONTEXTS)
def test_caption_panoramas_equal_the_reference(caption_engine: Engine, golden: dict[str, Any], context: str) -> None:
    """Two prompts of different length in one batch, guided: the unconditional stream depends on the length."""
    case = golden["t2i"]
    model = golden_model(case)
    requests = [
        PanoramaRequest(
            features=features[mask.bool()],
            width=width(columns),
            height=CROP,
            stride=3,
            guidance=3.0,
            temperature=0.0,
            context=context,
        )
        for features, mask, columns in zip(case["cond"], case["mask"], (13, 16), strict=True)
    ]
    results = caption_engine.generate(requests, decode=False, progress=False)
    for request, result in zip(requests, results, strict=True):
        assert result.codes.tolist() == draw_greedily(model, request).tolist()


@pytest.mark.parametrize("context", CONTEXTS)
def test_guidance_interval_counts_codes_of_each_crop(
    class_engine: Engine, golden: dict[str, Any], context: str
) -> None:
    model = golden_model(golden["c2i"])
    request = PanoramaRequest(
        label=5, width=width(13), height=CROP, stride=3, guidance=4.0, guidance_interval=6, temperature=0.0,
        context=context,
    )  # fmt: skip
    result = class_engine.generate([request], decode=False, progress=False)[0]
    assert result.codes.tolist() == draw_greedily(model, request).tolist()


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("stride", "crops"), [(3, 5), (2, 4)])
def test_counters_equal_the_prediction(class_engine: Engine, context: str, stride: int, crops: int) -> None:
    """g*g + (n-1)*c steps, and exactly the forward tokens and copies that simulate.py predicts."""
    request = PanoramaRequest(
        label=1, width=width(4 + (crops - 1) * stride), height=CROP, stride=stride, temperature=0.0, context=context
    )
    result = class_engine.generate([request], decode=False, progress=False)[0]
    resolved = result.request.engine_args(class_engine.config)
    expected = predict(plan_of(resolved, class_engine.config.grid), prefix_rows=1)
    assert result.stats.steps == expected.steps == 16 + (crops - 1) * stride
    assert result.stats.forward_tokens == expected.forward_tokens
    assert result.stats.copied_slots == expected.copied_slots
    assert (result.stats.drawn, result.stats.lanes) == (4 * (4 + (crops - 1) * stride), crops)


def test_seeds_repeat_and_do_not_depend_on_company(class_engine: Engine) -> None:
    """A sampled panorama is the same alone and in a batch, and another one with another seed."""
    base = {"label": 2, "width": width(19), "height": CROP, "stride": 3, "temperature": 1.0, "top_k": 20}
    alone = class_engine.generate([PanoramaRequest(seed=11, **base)], decode=False, progress=False)[0]
    requests = [PanoramaRequest(seed=seed, **base) for seed in (5, 11, 6)]
    together = class_engine.generate(requests, decode=False, progress=False)
    assert together[1].codes.tolist() == alone.codes.tolist()
    assert together[0].codes.tolist() != alone.codes.tolist()
    crops = alone.codes[:, 4:].unfold(1, 3, 3).unbind(1)  # the new columns of crops 1 ..
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) > 1


@pytest.mark.parametrize(("context", "lanes"), [("recompute", 1), ("reuse", 2), ("reuse", 3), ("recompute", 3)])
def test_a_small_cache_queues_lanes(
    class_engine: Engine, golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch, context: str, lanes: int
) -> None:
    """Three panoramas where only `lanes` lanes fit at a time: the same codes, later, and nothing is preempted."""
    scheduler = class_engine._engine.engine_core.engine_core.scheduler
    monkeypatch.setattr(scheduler._admission, "blocks", lanes)  # a lane of the golden model is one block
    most = 0
    real_schedule = scheduler.schedule

    def schedule(*args: Any, **kwargs: Any) -> Any:
        nonlocal most
        output = real_schedule(*args, **kwargs)
        assert not output.preempted_req_ids
        most = max(most, scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1 - free_now(scheduler))
        return output

    monkeypatch.setattr(scheduler, "schedule", schedule)
    model = golden_model(golden["c2i"])
    requests = [
        PanoramaRequest(label=label, width=width(columns), height=CROP, stride=3, temperature=0.0, context=context)
        for label, columns in ((3, 13), (7, 10), (1, 4))
    ]
    results = class_engine.generate(requests, decode=False, progress=False)
    for request, result in zip(requests, results, strict=True):
        assert result.codes.tolist() == draw_greedily(model, request).tolist()
    assert most <= lanes


def test_a_cache_that_can_never_do_is_an_error(class_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Context reuse needs two lanes; the message says what would help, and nothing is submitted."""
    monkeypatch.setattr(class_engine.vllm_config.scheduler_config, "max_num_seqs", 1)
    request = PanoramaRequest(label=1, width=width(8), height=CROP, stride=3, context="reuse")
    with pytest.raises(CacheTooSmallError, match=r"needs 2 lanes at once .* use context='recompute'"):
        class_engine.generate([request], decode=False, progress=False)


def test_an_interrupted_run_frees_everything(class_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = free_blocks(class_engine)
    steps = iter(range(10))
    real_step = class_engine._engine.step

    def step() -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return real_step()

    monkeypatch.setattr(class_engine._engine, "step", step)
    requests = [PanoramaRequest(label=label, width=width(16), height=CROP, stride=3) for label in range(4)]
    with pytest.raises(KeyboardInterrupt):
        class_engine.generate(requests, decode=False, progress=False)
    monkeypatch.undo()
    class_engine._engine.step()
    assert free_blocks(class_engine) == before
    result = class_engine.generate(requests[:1], decode=False, progress=False)[0]
    assert int(torch.min(result.codes)) >= 0


def test_a_sequence_is_drawn_as_results_complete_and_bad_requests_harm_nobody(class_engine: Engine) -> None:
    """`draw` takes from an iterator as there is room, and yields what `generate` returns."""
    base = {"height": CROP, "stride": 2, "temperature": 0.0, "guidance": 2.0}
    good = [PanoramaRequest(label=label, width=width(4 + 3 * (label % 3)), **base) for label in range(8)]
    wanted = class_engine.generate(good, decode=False, progress=False)
    requests = [*good[:3], PanoramaRequest(label=10**6, **base), *good[3:]]
    before, drawn = free_blocks(class_engine), 0

    def count(codes: int) -> None:
        nonlocal drawn
        drawn += codes

    results = dict(class_engine.draw(iter(requests), count))
    assert sorted(results) == list(range(9))
    error = results.pop(3)
    assert isinstance(error, InvalidRequestError) and error.param == "label"
    for (_, result), expected in zip(sorted(results.items()), wanted, strict=True):
        assert not isinstance(result, Exception)
        assert torch.equal(result.codes, expected.codes)
    assert drawn == sum(panorama.codes.numel() for panorama in wanted)
    assert free_blocks(class_engine) == before


def test_what_nobody_foresaw_fails_one_request_of_a_sequence(
    class_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = class_engine._prepare

    def breaks(requests: Any, decode: bool) -> Any:
        if requests[0].label == 2:
            raise KeyError("a bug")
        return prepare(requests, decode)

    monkeypatch.setattr(class_engine, "_prepare", breaks)
    base = {"height": CROP, "width": CROP, "temperature": 0.0}
    results = dict(class_engine.draw(PanoramaRequest(label=label, **base) for label in (1, 2, 3)))
    error = results.pop(1)
    assert isinstance(error, PanoramaFailedError) and "KeyError: 'a bug'" in str(error)
    assert sorted(results) == [0, 2] and not any(isinstance(result, Exception) for result in results.values())


def test_leaving_a_sequence_early_frees_everything(class_engine: Engine) -> None:
    before = free_blocks(class_engine)
    requests = (PanoramaRequest(label=label, width=width(16), height=CROP, stride=2) for label in range(5))
    for _ in class_engine.draw(requests):
        break
    else:
        pytest.fail("nothing was drawn")
    class_engine.generate([PanoramaRequest(label=1, width=CROP, height=CROP)], decode=False, progress=False)
    assert free_blocks(class_engine) == before


def test_reuse_is_refused_where_the_cache_cannot_be_moved(
    class_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_engine.vllm_config.cache_config, "cache_dtype", "fp8_e5m2")
    request = PanoramaRequest(label=1, width=CROP, height=CROP)
    with pytest.raises(InvalidRequestError, match="use context='recompute'"):
        class_engine.generate([request], decode=False, progress=False)
    class_engine.generate([replace(request, context="recompute")], decode=False, progress=False)


def test_two_drawings_at_once_are_refused_and_the_first_goes_on(class_engine: Engine) -> None:
    request = PanoramaRequest(label=1, width=CROP, height=CROP, temperature=0.0)
    drawing = class_engine.draw([request, request])
    _, first = next(drawing)
    for begin in (lambda: class_engine.generate([request], decode=False), lambda: next(class_engine.draw([request]))):
        with pytest.raises(PanoserveError, match="drawing already"):
            begin()
    [(_, second)] = drawing
    assert isinstance(first, Panorama) and isinstance(second, Panorama)
    assert torch.equal(first.codes, second.codes)
    [alone] = class_engine.generate([request], decode=False, progress=False)
    assert torch.equal(alone.codes, first.codes)
