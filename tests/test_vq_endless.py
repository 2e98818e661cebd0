"""Decoding a canvas that has no end: the same tiles however the codes come, and no seam between them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from live_memory import peak_bytes
from vq_weights import TINY_VQ, filled_vq

from panoserve.vq.endless import EndlessDecoder, decode_windows
from panoserve.vq.model import VQModel

SIDE = 8  # codes of a crop: tiles of 16, windows of 20
SCALE = TINY_VQ.downsample


@pytest.fixture(scope="module")
def model() -> VQModel:
    return filled_vq(replace(TINY_VQ, norm_groups=1))


def smooth_codes(rows: int, columns: int) -> torch.Tensor:
    """Codes that change slowly in both directions."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return ((y // 3 + (x * 7 // 50)) % TINY_VQ.codebook_size).long()


def decode(model: VQModel, codes: torch.Tensor, pieces: list[int], axis: int = 1) -> list[torch.Tensor]:
    decoder = EndlessDecoder(model, SIDE, axis)
    tiles = [tile for piece in codes.split(pieces, dim=axis) for tile in decoder.push(piece)]
    rest = decoder.finish()
    return tiles if rest is None else [*tiles, rest]


@pytest.mark.parametrize("axis", [0, 1])
def test_tiles_do_not_depend_on_the_pieces(model: VQModel, axis: int) -> None:
    """Nor on where the canvas ends: tiles of a longer one are the same."""
    codes = smooth_codes(8, 72) if axis else smooth_codes(72, 8)
    whole = decode(model, codes, [72], axis)
    assert [tile.shape[axis + 1] // SCALE for tile in whole] == [16, 16, 16, 16, 8]
    pieces = decode(model, codes, [1, 30, 5, 36], axis)
    assert all(torch.equal(one, other) for one, other in zip(whole, pieces, strict=True))
    shorter = decode(model, codes.narrow(axis, 0, 55), [55], axis)
    assert [tile.shape[axis + 1] // SCALE for tile in shorter] == [16, 16, 16, 7]
    assert all(torch.equal(one, other) for one, other in zip(whole[:3], shorter[:3], strict=True))


def test_it_can_be_taken_up_again(model: VQModel) -> None:
    """From the tile that is next and the codes of the window before it, bit for bit."""
    codes = smooth_codes(8, 80)
    whole = decode(model, codes, [80])
    for first in range(4):
        decoder = EndlessDecoder(model, SIDE, first=first)
        tiles = list(decoder.push(codes[:, decoder.begin :]))
        rest = decoder.finish()
        assert rest is not None
        assert len(tiles) == len(whole) - 1 - first
        assert all(torch.equal(one, other) for one, other in zip([*tiles, rest], whole[first:], strict=True))


def test_a_canvas_of_one_window_is_its_whole_decode(model: VQModel) -> None:
    """And finishing is no end: what is pushed afterwards is decoded as if nothing had been."""
    codes = smooth_codes(8, 50)
    decoder = EndlessDecoder(model, SIDE)
    assert decoder.finish() is None
    assert list(decoder.push(codes[:, :19])) == []
    rest = decoder.finish()
    assert rest is not None
    assert torch.allclose(rest, model.decode(codes[None, :, :19])[0], atol=1e-5)
    assert torch.equal(next(decoder.push(codes[:, 19:])), decode(model, codes, [50])[0])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_canvas_in_windows_is_its_tiles(model: VQModel, axis: int) -> None:
    """Along the longer side; one that is not longer than a window is decoded whole."""
    codes = smooth_codes(8, 50) if axis else smooth_codes(50, 8)
    assert torch.equal(decode_windows(model, codes, SIDE), torch.cat(decode(model, codes, [50], axis), dim=axis + 1))
    short = codes.narrow(axis, 0, 20)
    assert torch.allclose(decode_windows(model, short, SIDE), model.decode(short[None])[0], atol=1e-5)


def test_scenes_far_away_do_not_change_a_picture(model: VQModel) -> None:
    """Two canvases that differ in their right half have the same left part in windows, and not when decoded whole."""
    one = smooth_codes(8, 100)
    other = one.clone()
    other[:, 60:] = (other[:, 60:] + 9) % TINY_VQ.codebook_size
    left = slice(0, 40 * SCALE)
    in_windows = [decode_windows(model, codes, SIDE)[:, :, left] for codes in (one, other)]
    whole = [model.decode(codes[None])[0][:, :, left] for codes in (one, other)]
    assert torch.equal(*in_windows)
    assert not torch.allclose(*whole, atol=1e-3)


def steps(picture: torch.Tensor, columns: list[int]) -> float:
    """Mean absolute step into the given pixel columns."""
    return float((picture[:, :, columns] - picture[:, :, [c - 1 for c in columns]]).abs().mean())


def test_no_seam_between_tiles(model: VQModel) -> None:
    """Steps across tile borders, over all other steps, as in the whole decode; without fading they stand out."""
    codes = smooth_codes(8, 16 * 12 + 4)
    tiles = decode(model, codes, [codes.shape[1]])
    picture = torch.cat(tiles, dim=2)
    borders = [16 * SCALE * (i + 1) for i in range(12)]
    others = [c for c in range(1, 16 * SCALE * 12) if c not in borders]
    whole = model.decode(codes[None])[0]
    expected = steps(whole, borders) / steps(whole, others)
    assert steps(picture, borders) / steps(picture, others) < 1.1 * expected
    cut = torch.cat([model.decode(piece[None])[0] for piece in codes.split(16, dim=1)], dim=2)
    assert steps(cut, borders) / steps(cut, others) > 1.3 * expected


def test_memory_does_not_grow(model: VQModel) -> None:
    decoder, codes, peaks = EndlessDecoder(model, SIDE), smooth_codes(8, 16), []
    list(decoder.push(torch.cat([codes, codes], dim=1)))
    for _ in range(6):
        peaks.append(peak_bytes(lambda: list(decoder.push(codes))))
        assert decoder.codes is not None and decoder.codes.shape[1] <= 3 * 16 + 4
    assert max(peaks[1:]) <= 1.01 * peaks[1]
