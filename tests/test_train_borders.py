"""The stage that hides the borders of codes: its measure, what it changes, and that it resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from panoserve.train.borders import AREA, border_step, decoder_parameters, train, unevenness
from panoserve.train.files import save_state
from panoserve.train.render import HEIGHT, SCENES_A_SHARD, WIDTH
from panoserve.train.tokenizer import MINI_VQ
from panoserve.vq.config import VQConfig
from panoserve.vq.model import VQModel

SIDE = 4
SIZE = 2 * AREA * SIDE  # two areas: the second lacks the step out of the picture, and does not count


def test_slopes_are_even_and_stairs_are_not() -> None:
    slope = torch.arange(SIZE, dtype=torch.float32).expand(1, 3, SIZE, SIZE)
    assert unevenness(slope, SIDE).item() == 0
    stairs = (slope / SIDE).floor() * SIDE  # all of it between codes: steps 0, 0, 0, 4, of mean 1
    assert unevenness(stairs, SIDE).item() == pytest.approx((1 + 1 + 1 + 3) / 4)
    assert unevenness(stairs.transpose(-1, -2), SIDE).item() == pytest.approx(1.5)
    between = ((slope + 2) / SIDE).floor() * SIDE  # as many steps, but inside the codes
    assert unevenness(between, SIDE).item() == pytest.approx(1.5)


def test_the_decoder_learns_and_codes_keep_their_meaning() -> None:
    torch.manual_seed(0)
    config = VQConfig(
        channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, z_channels=8, code_dim=4, codebook_size=32,
        norm_groups=1,
    )  # fmt: skip
    model = VQModel(config)
    images = torch.rand(2, 3, 1, 1).expand(2, 3, SIZE, SIZE) * 2 - 1
    codes, weights = model.encode(images), model.quantize.embedding.weight.clone()
    optimizer = torch.optim.Adam(decoder_parameters(model), lr=3e-3)
    losses = [border_step(model, images, optimizer) for _ in range(20)]
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]
    assert torch.equal(model.encode(images), codes) and torch.equal(model.quantize.embedding.weight, weights)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "scenes").mkdir()
    shard = np.zeros((SCENES_A_SHARD, HEIGHT, WIDTH, 3), np.uint8)
    shard[:] = np.linspace(0, 255, HEIGHT, dtype=np.uint8)[:, None, None]
    np.save(tmp_path / "scenes" / "0000.npy", shard)
    save_state(tmp_path / "tokenizer" / "state.pt", {"model": VQModel(MINI_VQ).state_dict()})
    train(0, tmp_path, 1)
    train(0, tmp_path, 2)
    log = (tmp_path / "borders" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2]
