"""Decoding in strips: the same picture as a whole decode, in the memory it promises."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from live_memory import peak_bytes
from vq_weights import TINY_VQ, filled_vq

from panoserve.kernels.native import Level, level, lowered
from panoserve.vq import tiled
from panoserve.vq.config import VQ_16, VQConfig
from panoserve.vq.fields import Moments, Stored
from panoserve.vq.model import VQModel
from panoserve.vq.tiled import decode_tiled, decodes_at_once, whole_decode_bytes

TOLERANCE = 1e-4  # float32, pictures in about [-1, 1]: 1/80 of a level of an 8-bit picture


@pytest.fixture(autouse=True)
def narrow_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of the smallest width, so that small canvases have many."""
    monkeypatch.setattr(tiled, "STRIP_BYTES", 1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny operations: threads that wait for each other would be most of the time on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> VQModel:
    return filled_vq(TINY_VQ)


def random_codes(*shape: int) -> torch.Tensor:
    return torch.randint(0, TINY_VQ.codebook_size, shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("shape", [(1, 6, 20), (1, 20, 6), (1, 1, 23), (1, 17, 17)], ids=str)
@pytest.mark.parametrize("memory", [0, 20_000, 60_000, 120_000, 300_000])
def test_equals_the_whole_decode(model: VQModel, shape: tuple[int, ...], memory: int) -> None:
    """Wide, tall, one row, square; from nothing kept (everything recomputed) to everything kept."""
    codes = random_codes(*shape)
    torch.testing.assert_close(decode_tiled(model, codes, memory=memory), model.decode(codes), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", [(1, 6, 20), (1, 20, 6), (1, 1, 23), (1, 17, 17)], ids=str)
@pytest.mark.parametrize("memory", [0, 60_000, 300_000])
def test_around_equals_the_whole_decode_around(model: VQModel, shape: tuple[int, ...], memory: int) -> None:
    """Strips along the joined edges and across them, in place and in new memory."""
    codes = random_codes(*shape)
    strips = decode_tiled(model, codes, memory=memory, around=True)
    torch.testing.assert_close(strips, model.decode(codes, around=True), rtol=0, atol=TOLERANCE)


def test_around_has_no_edge(model: VQModel) -> None:
    """Codes moved round the circle give the picture moved round; a plain decode does not."""
    codes, side = random_codes(1, 6, 20), TINY_VQ.downsample
    moved = model.decode(codes.roll(7, dims=-1), around=True)
    torch.testing.assert_close(moved, model.decode(codes, around=True).roll(7 * side, dims=-1), rtol=0, atol=TOLERANCE)
    plain = model.decode(codes.roll(7, dims=-1)) - model.decode(codes).roll(7 * side, dims=-1)
    assert plain.abs().max() > 100 * TOLERANCE


def test_decoding_tiles_apart_would_not_be_equal(model: VQModel) -> None:
    """Why this module exists: global statistics and attention make a naive tile differ by far more than rounding."""
    codes = random_codes(1, 6, 20)
    naive = torch.cat([model.decode(codes[..., :10]), model.decode(codes[..., 10:])], dim=-1)
    assert (naive - model.decode(codes)).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("config", [VQConfig(8, (2,), 1, 8, 32, 4, 4), VQConfig(8, (1, 1), 1, 8, 32, 4, 4)], ids=str)
def test_few_levels(config: VQConfig) -> None:
    """One level (nothing after the latent resolution but the last convolution) and two."""
    model, codes = filled_vq(config), random_codes(1, 4, 40)
    torch.testing.assert_close(decode_tiled(model, codes, memory=0), model.decode(codes), rtol=0, atol=TOLERANCE)


def test_each_picture_of_a_batch_has_its_own_statistics(model: VQModel) -> None:
    codes = random_codes(2, 4, 12)
    codes[1] = 7
    torch.testing.assert_close(decode_tiled(model, codes, memory=0), model.decode(codes), rtol=0, atol=TOLERANCE)


def test_a_small_canvas_is_decoded_whole(model: VQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(1, 4, 4)
    monkeypatch.setattr(tiled, "_decode_in_strips", lambda *_: pytest.fail("cut into strips"))
    enough = whole_decode_bytes(model, 4, 4)
    with torch.no_grad():  # as decode_tiled: with gradients, normalisation takes another path
        assert torch.equal(decode_tiled(model, codes, memory=enough), model.decode(codes))
    with pytest.raises(pytest.fail.Exception):
        decode_tiled(model, codes, memory=enough - 1)


def test_small_canvases_are_decoded_together_on_a_gpu(model: VQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, one = random_codes(3, 4, 4), whole_decode_bytes(model, 4, 4)
    assert decodes_at_once(model, 4, 4, 3 * one) == 1, "a CPU takes them one by one"
    elsewhere = copy.deepcopy(model).to("meta")
    assert [decodes_at_once(elsewhere, 4, 4, memory) for memory in (0, one, 2 * one, 3 * one)] == [1, 1, 2, 3]
    monkeypatch.setattr(tiled, "decodes_at_once", lambda *_: 2)
    fractions: list[float] = []
    together = decode_tiled(model, codes, memory=2 * one, progress=fractions.append)
    torch.testing.assert_close(together, model.decode(codes), rtol=0, atol=TOLERANCE)
    assert fractions == [0.5, 1.0]


@pytest.mark.parametrize("memory", [0, 60_000, 1 << 30])
def test_progress_rises_to_one(model: VQModel, memory: int) -> None:
    fractions: list[float] = []
    decode_tiled(model, random_codes(2, 4, 24), memory=memory, progress=fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert all(0.0 <= fraction <= 1.0 for fraction in fractions)


def planned_work(model: VQModel, rows: int, columns: int, memory: int) -> float:
    """Multiply-adds after the latent resolution."""
    plan = tiled._Plan()
    latent = torch.empty(1, model.config.widths[-1], rows, columns, device="meta")
    tiled._run_levels(model.decoder, Stored(latent, 3), latent, memory, plan)
    return plan.work


@pytest.mark.parametrize(("rows", "columns"), [(32, 320), (256, 280)])
def test_more_memory_never_means_more_work(rows: int, columns: int) -> None:
    """The full-size VQ-16; the numbers in the module's docstring are per pixel, so the same for every canvas."""
    with torch.device("meta"):
        model = VQModel(VQ_16)
    kib = rows * columns * 256 * 1024 // 8
    work = [planned_work(model, rows, columns, eighths * kib) for eighths in (0, 1, 2, 3, 4, 6, 9, 100)]
    assert work == sorted(work, reverse=True)
    assert work[-2] == work[-1]
    nothing, quarter, half = work[0] / work[-1], work[2] / work[-1], work[5] / work[-1]
    assert (round(nothing, 1), round(quarter, 1), round(half, 1)) == (9.4, 3.4, 1.2)


def test_bfloat16(model: VQModel) -> None:
    """Statistics are gathered in float32 and float64 whatever the dtype; the rest rounds as a whole decode does."""
    codes = random_codes(1, 6, 20)
    exact = model.decode(codes)
    half = filled_vq(TINY_VQ).to(torch.bfloat16)
    whole_error = (half.decode(codes).float() - exact).square().mean().sqrt()
    strips = decode_tiled(half, codes, memory=0)
    assert strips.dtype == torch.float32
    assert (strips - exact).square().mean().sqrt() < 1.5 * whole_error


def test_moments_survive_a_mean_far_from_zero() -> None:
    """Sums of squares in float32 would lose the variance here; so would forgetting that strips differ in mean."""
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 40, dtype=torch.float64) + 3000 + torch.arange(40.0, dtype=torch.float64)
    norm = torch.nn.GroupNorm(2, 8, eps=1e-6, dtype=torch.float64)
    moments = Moments()
    for strip in x.float().split([16, 16, 8], dim=3):
        moments.add(strip)
    scale = moments.affine(norm).scale.double()[0]
    torch.testing.assert_close(scale, torch.rsqrt(x[:, :4].var(correction=0) + 1e-6), rtol=1e-4, atol=0)


@pytest.mark.parametrize("at", sorted({Level.NONE, level()}), ids=lambda at: at.name)
@pytest.mark.parametrize("memory", [0, 800_000])
def test_memory_stays_within_the_promise(memory: int, at: Level) -> None:
    """The bound of the module's docstring, on a canvas whose finest level alone is far above it."""
    config = VQConfig(16, (1, 1, 1, 2), 1, 16, 32, 4, 4)
    model = filled_vq(config)
    rows, columns, itemsize = 4, 768, 4
    codes = random_codes(1, rows, columns)
    pixels = rows * columns * config.downsample**2
    latent = 10 * config.widths[-1] * itemsize * rows * columns
    strips = 8 * tiled.MIN_STRIP * max(config.widths[:2]) * itemsize * rows * config.downsample
    convolutions = sum(weight.nbytes for weight in model.decoder.parameters() if weight.shape[2:] == (3, 3))
    kernel = 4 * convolutions + torch.get_num_threads() * 2**21 if at > Level.NONE else 0
    bound = 12 * pixels + latent + memory + strips + kernel
    with lowered(at):
        assert peak_bytes(lambda: decode_tiled(model, codes, memory=memory)) <= bound
        assert peak_bytes(lambda: model.decode(codes)) > 1.5 * bound
