"""The training code: each trainer learns, patches are what facts.md 4.1 says, and the exported folder loads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from panoserve.configs.model import ModelConfig
from panoserve.models.reference import ReferenceModel
from panoserve.models.text import TextEncoder
from panoserve.train import captioner
from panoserve.train.export import export_model
from panoserve.train.fast import BAND, causal_states, logits_of
from panoserve.train.files import Progress
from panoserve.train.listening import ATTRIBUTES, RowFinder, labels
from panoserve.train.muon import orthogonalise
from panoserve.train.npp import patch_logits, patch_loss, patch_states, patches
from panoserve.train.precision import training_dtype
from panoserve.train.preview import draw_panorama, load_transformer
from panoserve.train.reading import BATCH, caption_batches, learn_to_read
from panoserve.train.scenes import sample_spec
from panoserve.train.scenes.spec import FEATURES
from panoserve.train.score import CAPTIONS, score
from panoserve.train.tokenizer import TokenizerRecipe, TokenizerTrainer, cosine_rate, revive_codes, start_codebook
from panoserve.train.transformer import Batch, TransformerRecipe, TransformerTrainer
from panoserve.vq.config import VQConfig
from panoserve.vq.io import load_vq
from panoserve.vq.model import VQModel

SMALL_VQ = VQConfig(
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    z_channels=8,
    codebook_size=32,
    code_dim=4,
    norm_groups=1,
)
SMALL = ModelConfig(
    vocab_size=32,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    grid_side=4,
    downsample=2,
    condition="caption",
    caption_dim=32,
    caption_length=20,
)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return captioner.make_tokenizer(captions=300)


def _trainer(tokenizer: object, **recipe: Any) -> TransformerTrainer:
    torch.manual_seed(0)
    encoder = captioner.new_encoder(len(tokenizer), width=32, layers=1)  # type: ignore[arg-type]
    return TransformerTrainer(SMALL, TransformerRecipe(warm_up=1, **recipe), tokenizer, encoder)  # type: ignore[arg-type]


def _random_model() -> ReferenceModel:
    torch.manual_seed(1)
    model = ReferenceModel(SMALL)
    model.init_weights()
    torch.nn.init.normal_(model.output.weight, std=0.1)
    return model.eval()


def test_the_fast_layers_compute_the_reference_function() -> None:
    model = _random_model()
    rows = 2 * BAND  # with the codes a little more than two bands of attention rows
    codes, prefix = torch.randint(0, 32, (3, 15)), torch.randn(3, rows, 64)
    x = torch.cat([prefix, model.tok_embeddings(codes)], dim=1)
    states = causal_states(model, x, torch.arange(rows + 15) - rows)
    assert len(states) == len(model.layers)
    fast = logits_of(model, states[-1])[:, rows - 1 :]
    torch.testing.assert_close(fast, model(codes, prefix), rtol=1e-4, atol=1e-5)


def test_patches_of_one_code_give_the_plain_loss() -> None:
    model = _random_model()
    codes, prefix = torch.randint(0, 32, (3, 16)), torch.randn(3, 5, 64)
    plain = torch.nn.functional.cross_entropy(model(codes[:, :-1], prefix).flatten(0, 1), codes.flatten())
    torch.testing.assert_close(patch_loss(model, codes, prefix, 1), plain, rtol=1e-4, atol=1e-5)
    assert patch_logits(model, codes, prefix, 2).shape == (3, 4, 32)


def test_a_patch_holds_its_square_in_raster_order() -> None:
    grid = torch.arange(16)[None]
    assert patches(grid, side=4, patch=2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize("supported", [True, False])
def test_muon_updates_have_singular_values_near_one(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: supported)
    torch.manual_seed(0)
    made = orthogonalise(torch.randn(24, 60))
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.5 and values.max() < 1.5
    assert torch.equal(made, made.bfloat16().float()) == supported


def test_the_rate_warms_up_and_falls_to_its_floor() -> None:
    rates = [cosine_rate(step, 100, 1.0, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.03)


def test_tokenizer_steps_lower_the_loss_with_and_without_codebook() -> None:
    torch.manual_seed(0)
    trainer = TokenizerTrainer(SMALL_VQ, TokenizerRecipe(steps=30, warm_up=2, continuous_steps=15, revive_every=10))
    images = torch.rand(2, 3, 1, 1).expand(2, 3, 16, 16) * 2 - 1
    losses = [trainer.train_step(images)["loss"] for _ in range(30)]
    assert losses[14] < 0.7 * losses[0]
    assert losses[-1] < 0.7 * losses[0]


def test_a_resumed_tokenizer_takes_the_same_step() -> None:
    torch.manual_seed(0)
    recipe = TokenizerRecipe(steps=20, continuous_steps=20)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    first = TokenizerTrainer(SMALL_VQ, recipe)
    first.train_step(images)
    second = TokenizerTrainer(SMALL_VQ, recipe)
    second.load(first.state())
    assert first.train_step(images)["loss"] == pytest.approx(second.train_step(images)["loss"], rel=1e-3)


def test_unused_codes_move_onto_latents() -> None:
    torch.manual_seed(0)
    model = VQModel(SMALL_VQ)
    latents = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0, 0]]).repeat(40, 1), dim=1)
    start_codebook(model, torch.nn.functional.normalize(torch.randn(200, 4), dim=1))
    counts = torch.ones(32, dtype=torch.long)
    counts[7] = 0
    before = model.quantize.codebook()[6].clone()
    assert revive_codes(model, counts, latents) == 1
    assert model.quantize.codebook()[7, 0] > 0.95
    torch.testing.assert_close(model.quantize.codebook()[6], before)


def _batch(tokenizer: object, captions: list[str], codes: torch.Tensor, strangers: int = 0) -> Batch:
    """Captions of one length, each of another scene."""
    ids = torch.tensor(captioner.tokenize(tokenizer, captions, 20))
    return Batch(codes, ids, torch.tensor([labels(sample_spec(i)) for i in range(len(ids))]), strangers)


@pytest.mark.parametrize(("patch", "dtype"), [(1, torch.bfloat16), (2, torch.bfloat16), (1, torch.float32)])
def test_transformer_steps_lower_the_loss(
    tokenizer: object, patch: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the processor has instructions for bfloat16 or not."""
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: dtype == torch.bfloat16)
    assert training_dtype() == dtype
    dtypes = set()

    def states(model: ReferenceModel, codes: torch.Tensor, prefix: torch.Tensor, patch: int) -> list[torch.Tensor]:
        dtypes.add(prefix.dtype)
        return patch_states(model, codes, prefix, patch)

    monkeypatch.setattr("panoserve.train.transformer.patch_states", states)
    trainer = _trainer(tokenizer, steps=25, phases=((1.0, patch, 8),))
    codes = torch.randint(0, 4, (8, 1)).expand(8, 16)
    batch = _batch(tokenizer, ["a red sunset"] * 8, codes)
    losses = [trainer.train_step(batch)["loss"] for _ in range(25)]
    assert losses[0] == pytest.approx(np.log(32), rel=0.01)  # the output layer starts at zero
    assert losses[-1] < 0.7 * losses[0] and dtypes == {dtype}


def test_a_crop_with_the_caption_of_another_scene_is_for_the_listener_alone(tokenizer: object) -> None:
    """Its codes change no code's loss, its caption does change what is heard."""
    torch.manual_seed(0)
    captions = ["a red sunset", "a blue night", "a green lake", "a calm sea"]
    codes = torch.randint(0, 32, (4, 16))
    other = codes.clone()
    other[0] = (codes[0] + 1) % 32
    first, second = (
        _trainer(tokenizer, steps=2, phases=((1.0, 1, 4),), condition_dropout=0.0).train_step(
            _batch(tokenizer, captions, some, strangers=1)
        )
        for some in (codes, other)
    )
    assert first["loss"] == second["loss"]
    assert first["heard"] != second["heard"]


def test_what_the_caption_says_is_learnt(tokenizer: object) -> None:
    """Codes that tell nothing: what is heard must come from the text."""
    trainer = _trainer(tokenizer, steps=40, phases=((1.0, 1, 6),), condition_dropout=0.0)
    captions = ["a red sunset", "a blue night", "a green lake", "a calm sea", "a pink dawn", "a foggy forest"]
    batch = _batch(tokenizer, captions, torch.zeros(6, 16, dtype=torch.long), strangers=2)
    heard = [trainer.train_step(batch)["heard"] for _ in range(40)]
    assert heard[-1] < 0.3 * heard[0]


def test_the_row_is_learnt_where_codes_do_not_tell_it(tokenizer: object) -> None:
    trainer = _trainer(tokenizer, steps=60, phases=((1.0, 1, 6),))
    batch = _batch(tokenizer, ["a red sunset"] * 6, torch.zeros(6, 16, dtype=torch.long))
    rows = [trainer.train_step(batch)["row"] for _ in range(60)]
    assert rows[-1] < 0.5 * rows[0]


def test_a_patch_stands_in_the_row_it_begins_in() -> None:
    finder = RowFinder(8, side=4)
    with torch.no_grad():
        finder.output.weight.zero_()
        finder.output.bias.copy_(torch.tensor([0.0, -50.0, 0.0, -50.0]))  # row 0 or 2
    assert finder.loss(torch.randn(2, 4, 8), patch=2).item() == pytest.approx(np.log(2), abs=1e-4)
    assert finder.loss(torch.randn(2, 16, 8), patch=1).item() > 20


def test_batches_of_captions_have_one_length_and_their_scenes_labels(
    tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panoserve.train.reading.DRAWN_AT_ONCE", 150)
    batches = list(caption_batches(np.random.default_rng(0), 300, tokenizer, limit=20))
    assert sum(len(ids) for ids, _ in batches) == 300
    assert all(len(ids) == len(truth) <= BATCH for ids, truth in batches)
    night = captioner.tokenize(tokenizer, ["night"], 20)[0][0]
    time = list(ATTRIBUTES).index("time")
    said = [row[time] for ids, truth in batches for i, row in zip(ids, truth, strict=True) if night in i]
    assert said and all(ATTRIBUTES["time"][int(value)] == "night" for value in said)


def test_reading_is_learnt_from_captions_alone(tokenizer: object, tmp_path: Path) -> None:
    trainer = _trainer(tokenizer, steps=1)
    captions = ["a red sunset", "a blue night", "a green lake", "a calm sea", "a pink dawn", "a foggy forest"]
    batch = _batch(tokenizer, captions, torch.zeros(6, 16, dtype=torch.long))
    progress = Progress(tmp_path / "log.jsonl")
    learn_to_read(
        trainer.encoder, trainer.model.cls_embedding, trainer.reader, [(batch.ids, batch.labels)] * 75, progress
    )
    first, *_, last = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert last["step"] == 75 and last["feature"] < 0.3 * first["feature"]


def test_a_model_that_follows_its_captions_scores_well(tokenizer: object) -> None:
    """Each feature has codes of its own: before training the score is chance, after it nearly perfect."""
    torch.manual_seed(0)
    specs = [next(spec for i in range(200) if (spec := sample_spec(i)).feature == feature) for feature in FEATURES]
    crops = torch.arange(6)[:, None].expand(6, 16).contiguous()
    trainer = _trainer(tokenizer, steps=60, phases=((1.0, 1, 6),), condition_dropout=0.0)
    before = score(trainer, crops, specs, "feature")
    assert before.worth == pytest.approx(0.0, abs=0.1) and before.crops == 6
    words = list(CAPTIONS["feature"].values())
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(captioner.tokenize(tokenizer, words, 20)):
        by_length.setdefault(len(ids), []).append(i)
    for _ in range(60 // len(by_length)):
        for alike in by_length.values():
            trainer.train_step(_batch(tokenizer, [words[i] for i in alike], crops[alike]))
    after = score(trainer, crops, specs, "feature")
    assert after.right > 0.9 and after.worth > 1


def test_captions_become_words_with_one_end_token(tokenizer: object) -> None:
    ids, other = captioner.tokenize(tokenizer, ["a red sunset", "xylophones"], 20)
    assert ids[-1] == captioner.END and ids.count(captioner.END) == 1 and len(ids) == 4
    assert captioner.UNKNOWN not in other and len(other) > 5  # spelled out


def test_an_exported_folder_loads_and_draws(tokenizer: object, tmp_path: Path) -> None:
    trainer = _trainer(tokenizer, steps=1)
    vq = VQModel(SMALL_VQ)
    parts = (trainer.model.state_dict(), SMALL_VQ, vq.state_dict(), trainer.encoder, tokenizer)
    export_model(tmp_path, SMALL, *parts)
    assert ModelConfig.load(tmp_path) == SMALL
    loaded = load_transformer(tmp_path)
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    text = TextEncoder(tmp_path / "text_encoder", SMALL.caption_length, torch.float32).encode(["a red sunset"])[0]
    assert text.features.shape == (4, SMALL.caption_dim)
    sampling = dataclasses.replace(SMALL.sampling, top_k=4)
    codes = draw_panorama(loaded, text.features, columns=7, stride=2, sampling=sampling, seed=0)
    assert codes.shape == (4, 7) and codes.min() >= 0
    assert load_vq(tmp_path / "vq").decode(codes[None]).shape == (1, 3, 8, 14)


@pytest.mark.parametrize("patch", [1, 2])
def test_golden_npp_losses(golden: dict[str, Any], patch: int) -> None:
    """facts.md 9: g 8, labels without a null row, no dropout."""
    case = golden["npp"]
    shape = case["cfg"]
    model = ReferenceModel(
        ModelConfig(
            vocab_size=shape["vocab"],
            hidden_size=shape["dim"],
            num_hidden_layers=shape["n_layer"],
            num_attention_heads=shape["n_head"],
            intermediate_size=case["sd"]["layers.0.feed_forward.w1.weight"].shape[0],
            grid_side=shape["g"],
            downsample=16,
            condition="class",
            num_classes=shape["classes"],
            unconditional=False,
        )
    )
    model.load_state_dict(case["sd"])
    prefix = model.cls_embedding(case["labels"])
    loss = patch_loss(model, case["tokens"], prefix, patch)
    assert loss.item() == pytest.approx(float(case["losses"][patch]), abs=2e-5)
