"""The stage that teaches the decoder to draw edges: what it compares, what it changes, and that it resumes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from panoserve.train import sharpening
from panoserve.train.codes import encode_scene
from panoserve.train.files import load_state, save_state
from panoserve.train.render import HEIGHT, MARGIN, SCENES_A_SHARD, WIDTH
from panoserve.train.sharpening import PENALTY_EVERY, WARM_UP, CodedScenes, Critic, Sharpener, code_grid, duel, train
from panoserve.train.tokenizer import MINI_VQ
from panoserve.vq.config import VQConfig
from panoserve.vq.model import VQModel

SMALL_VQ = VQConfig(
    channels=8, channel_multipliers=(1, 2), num_res_blocks=1, z_channels=8, codebook_size=32, code_dim=4, norm_groups=1
)
STEPS = 100


def sharpener() -> Sharpener:
    torch.manual_seed(0)
    return Sharpener(VQModel(SMALL_VQ), STEPS)


def some_batch(trainer: Sharpener) -> tuple[Tensor, Tensor]:
    """Codes [2, 16, 16] and the pictures they are of: stripes with sharp edges."""
    images = ((torch.arange(32) // 4) % 2 * 2.0 - 1).expand(2, 3, 32, 32).contiguous()
    with torch.no_grad():
        return trainer.model.encode(images), images


def test_a_grid_of_codes_is_told_from_edges_anywhere() -> None:
    """Stairs as wide as a code have all their steps at its last place; edges of many places cancel."""
    side, size = 4, 96
    stairs = (torch.arange(size) // side * side / 10.0).expand(2, 3, size, size)
    along, across = code_grid(stairs, side)
    assert along.argmax() == side - 1 and along[-1] > 1 and (along[:-1] < 0).all() and across.abs().max() == 0
    assert torch.equal(code_grid(stairs.transpose(-1, -2), side), torch.stack([across, along]))
    generator = torch.Generator().manual_seed(0)
    assert code_grid(torch.rand(4, 3, size, size, generator=generator), side).abs().max() < 0.05


def test_a_grid_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharpening, "CRITIC_SHARE", 0.0)
    monkeypatch.setattr(sharpening, "AREA", 2)
    grids = []
    for price in (0.0, 30.0):
        monkeypatch.setattr(sharpening, "PRICE", price)
        trainer = sharpener()
        codes, images = some_batch(trainer)
        for group in trainer.optimizer.param_groups:
            group["lr"] = 3e-3
        for _ in range(15):
            trainer._teach_decoder(trainer.model.decode(codes), images)
        grids.append(code_grid(trainer.model.decode(codes).detach(), 2).abs().sum())
    assert grids[1] < 0.7 * grids[0]


def test_a_duel_is_even_between_equals() -> None:
    scores = torch.randn(2, 1, 4, 4)
    assert duel(scores, scores).item() == pytest.approx(np.log(2))
    assert duel(scores + 3, scores) < 0.06 and duel(scores, scores + 3) > 3


def test_the_critic_learns_what_is_made() -> None:
    trainer = sharpener()
    _, images = some_batch(trainer)
    soft = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    before = None
    for trainer.step in range(60):
        for group in trainer.critic_optimizer.param_groups:
            group["lr"] = 4e-4
        loss = trainer._teach_critic(soft, images)["critic"]
        before = before or loss
    assert before is not None and loss < 0.3 < before


def test_a_critic_scores_patches() -> None:
    critic = Critic(width=4)
    pictures = torch.randn(1, 3, 96, 96, requires_grad=True)
    scores = critic(pictures)
    assert scores.shape == (1, 1, 12, 12)
    scores[0, 0, 6, 6].backward()
    assert pictures.grad is not None
    seen = pictures.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [38, 38]


def test_the_decoder_pleases_the_critic_as_far_as_its_share_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the critic's gradient alone its scores of what is made rise, without it they are left to the error."""
    rises = []
    for share in (0.0, 100.0):
        monkeypatch.setattr(sharpening, "CRITIC_SHARE", share)
        trainer = sharpener()
        codes, images = some_batch(trainer)
        trainer.step = 3 * WARM_UP  # the share has reached its full size
        for group in trainer.optimizer.param_groups:
            group["lr"] = 2e-3
        before = trainer.critic(trainer.model.decode(codes)).mean().item()
        for _ in range(5):
            trainer._teach_decoder(trainer.model.decode(codes), images)
        rises.append(trainer.critic(trainer.model.decode(codes)).mean().item() - before)
    assert rises[1] > max(0.0, rises[0])


def test_the_critic_is_held_back_on_every_eighth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharpening, "PENALTY", 50.0)
    moved = []
    for step in (PENALTY_EVERY, PENALTY_EVERY + 1):
        trainer = sharpener()
        _, images = some_batch(trainer)
        trainer.step = step
        trainer._teach_critic(images.roll(1, dims=-1), images)
        moved.append(trainer.critic_optimizer.state[trainer.critic.score.weight]["exp_avg"].clone())
    assert not torch.allclose(moved[0], moved[1])


def test_only_the_decoder_changes_and_codes_keep_their_meaning() -> None:
    trainer = sharpener()
    codes, images = some_batch(trainer)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    reports = [trainer.train_step(codes, images) for _ in range(12)]
    assert reports[-1]["l1"] < reports[0]["l1"]
    after = trainer.model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"post_quant_conv", "decoder"}
    assert torch.equal(trainer.model.encode(images), codes)


def test_a_state_that_was_loaded_goes_on_as_the_one_it_is_of() -> None:
    trainer = sharpener()
    batch = some_batch(trainer)
    for _ in range(3):
        trainer.train_step(*batch)
    other = sharpener()
    other.load(copy.deepcopy(trainer.state()))
    assert other.step == 3
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)
    assert other.train_step(*batch) == trainer.train_step(*batch)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one shard of scenes, of which two are encoded, and a decoder."""
    folder = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    model = VQModel(MINI_VQ)
    save_state(folder / "borders" / "state.pt", {"model": model.state_dict()})
    shard = np.zeros((SCENES_A_SHARD, HEIGHT + MARGIN, WIDTH, 3), np.uint8)
    shard[:2] = np.random.default_rng(0).integers(0, 256, (2, HEIGHT + MARGIN, WIDTH, 3), np.uint8)
    codes = np.stack([encode_scene(model, shard[scene], scene) for scene in range(2)])
    for name, values in (("scenes", shard), ("codes", codes)):
        (folder / name).mkdir()
        np.save(folder / name / "0000.npy", values)
    return folder


def test_a_run_goes_on_where_it_stopped(work: Path, tmp_path: Path) -> None:
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    for folder in (whole, halted):
        folder.mkdir()
        for part in ("scenes", "codes", "borders"):
            (folder / part).symlink_to(work / part)
    train(0, whole, 2)
    train(0, halted, 1)
    train(0, halted, 2)
    states = [load_state(folder / "sharpening" / "state.pt") for folder in (whole, halted)]
    assert [state["step"] for state in states if state] == [2, 2]
    log = (halted / "sharpening" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in log]
    assert [line["step"] for line in steps] == [1, 2]
    # The rates go by the length of the run, so that the first step of a run of one is not that of a run of two.
    assert states[0] is not None and states[1] is not None
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(value, states[1]["model"][name], rtol=0, atol=1e-3)
    moments = [state["optimizers"][1]["state"][0]["step"] for state in states if state]
    assert moments == [2, 2]


def test_windows_are_the_pictures_that_their_codes_were_made_of(work: Path) -> None:
    """Scenes of noise: the decoder's input and the picture it is compared with are of the same place."""
    scenes = CodedScenes(work)
    model = VQModel(MINI_VQ)
    model.load_state_dict(torch.load(work / "borders" / "state.pt", weights_only=True)["model"])
    codes, images = scenes.batch(np.random.default_rng(0), 3, 8)
    assert codes.shape == (3, 24, 24) and images.shape == (3, 3, HEIGHT, HEIGHT)
    with torch.no_grad():
        again = model.encode(images)
    # Inside, away from the windows' own edges, where the encoder saw what lies beyond them.
    assert ((again == codes)[:, 6:18, 6:18].float().mean((1, 2)) > 0.5).all()


def test_missing_stages_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.borders"):
        train(0, tmp_path, 1)
