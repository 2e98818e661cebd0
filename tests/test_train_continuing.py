"""Crops that continue something: what they are cut from, what is given, and what is predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from panoserve.models.reference import ReferenceModel
from panoserve.train import captioner
from panoserve.train.continuations import FIRST_SCENE, WIDTH, changed, changing_specs, render_changing
from panoserve.train.continuing import CHANGING, GIVEN, TALL, ContinuationStore, joined
from panoserve.train.listening import labels
from panoserve.train.npp import patch_losses
from panoserve.train.render import HEIGHT, MARGIN, SCENES_A_SHARD, render
from panoserve.train.scenes import sample_spec
from panoserve.train.scenes.spec import EXTRAS, FEATURES
from panoserve.train.transformer import MINI, Batch

ROWS, COLUMNS = 48, 72  # codes of a tall scene


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ContinuationStore:
    """One shard whose codes tell their place: row of a tall scene, column of a changing one."""
    folder = tmp_path_factory.mktemp("continuations")
    tall = np.broadcast_to(np.arange(ROWS)[:, None], (SCENES_A_SHARD, ROWS, COLUMNS)).astype(np.uint16)
    changing = np.broadcast_to(np.arange(COLUMNS), (SCENES_A_SHARD, MINI.grid_side, COLUMNS)).astype(np.uint16)
    change = np.tile(np.array([[15, 40]], np.uint16), (SCENES_A_SHARD, 1))
    np.savez(folder / "0003.npz", tall=tall, changing=changing, change=change)
    return ContinuationStore(folder)


def test_a_change_leaves_the_land_and_never_asks_for_what_cannot_be() -> None:
    specs = [sample_spec(i) for i in range(120)]
    for spec, other in zip(specs[::2], specs[1::2], strict=True):
        new = changed(spec, other)
        assert (new.feature, new.extra, new.seed) == (spec.feature, spec.extra, spec.seed)
        assert (new.time, new.mood, new.moon) == (other.time, other.mood, other.moon)
        assert new.extra in EXTRAS[new.feature] and not (new.feature == "desert" and new.weather == "overcast")
        if new.extra == "flowers" or new.feature in ("sea", "desert"):
            assert new.season == spec.season
    assert {spec.feature for spec in specs} == set(FEATURES)


def test_a_changing_scene_is_one_scene_at_its_left_and_another_at_its_right() -> None:
    scene = FIRST_SCENE + 1
    picture, (first, last) = render_changing(scene)
    left, right = (render(spec, WIDTH, HEIGHT + MARGIN, own_land=True) for spec in changing_specs(scene))
    assert picture.shape == (HEIGHT + MARGIN, WIDTH, 3) and 0 < first < last < WIDTH
    assert np.array_equal(picture[:, :first], left[:, :first]) and np.array_equal(picture[:, last:], right[:, last:])
    middle = (first + last) // 2
    assert not np.array_equal(picture[:, middle], left[:, middle])
    assert not np.array_equal(picture[:, middle], right[:, middle])


def test_what_is_drawn_of_a_tall_crop_lies_below_the_first_crop(store: ContinuationStore) -> None:
    rng, lowest = np.random.default_rng(0), 0
    for _ in range(200):
        codes, given = store.tall_crop(rng, 0)
        known = int(given[:, 0].sum())
        assert GIVEN[0] <= known <= GIVEN[1] and given[:known].all() and not given[known:].any()
        assert codes[known, 0] >= MINI.grid_side  # its row in the scene
        lowest = max(lowest, int(codes[-1, 0]))
    assert lowest == ROWS - 1


def test_what_is_given_of_a_changing_crop_ends_about_where_the_change_begins(store: ContinuationStore) -> None:
    rng = np.random.default_rng(0)
    ends = set()
    for _ in range(200):
        codes, given = store.changing_crop(rng, 0)
        known = int(given[0].sum())
        assert given[:, :known].all() and not given[:, known:].any()
        ends.add(int(codes[0, known]))
    assert min(ends) <= 15 and 30 <= max(ends) < 40 + MINI.grid_side


def test_a_batch_has_captions_of_one_length_that_say_what_comes_after_the_change(store: ContinuationStore) -> None:
    tokenizer = captioner.make_tokenizer(captions=300)
    assert store.scenes[0] == FIRST_SCENE + 3 * SCENES_A_SHARD
    after = {tuple(labels(changing_specs(scene)[1])) for scene in store.scenes}
    tall = {tuple(labels(sample_spec(scene))) for scene in store.scenes}
    more = store.batch(np.random.default_rng(1), tokenizer, length=9)
    assert more.codes.shape == (TALL + CHANGING, MINI.grid_side**2) and more.ids.shape == (TALL + CHANGING, 9)
    assert all(tuple(row) in tall for row in more.labels[:TALL].tolist())
    assert all(tuple(row) in after for row in more.labels[TALL:].tolist())
    usual = Batch(more.codes[:3] + 1, more.ids[:3], more.labels[:3], 1)
    batch = joined(usual, more)
    assert batch.strangers == 1 and batch.given is not None and not batch.given[:3].any()
    assert batch.lowered.tolist() == [False] * 3 + [True] * TALL + [False] * CHANGING


def test_given_codes_are_not_predicted() -> None:
    torch.manual_seed(0)
    model = ReferenceModel(replace(MINI, vocab_size=16, hidden_size=32, num_hidden_layers=1, grid_side=4))
    codes, logits = torch.randint(0, 16, (2, 16)), torch.randn(2, 16, 16)
    given = torch.zeros(2, 16, dtype=torch.bool)
    given[1, :12] = True
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(2, 16)
    expected = torch.stack([plain[0].mean(), plain[1, 12:].mean()])
    torch.testing.assert_close(patch_losses(model, logits, codes, 1, given), expected)


def test_without_scenes_the_stage_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.continuations"):
        ContinuationStore(tmp_path / "continuations")
