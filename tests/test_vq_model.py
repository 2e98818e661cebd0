"""The VQ tokenizer against the golden vectors, its training forward, and its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from live_memory import peak_bytes
from torch import Tensor
from vq_weights import TINY_VQ, filled_vq

from panoserve.errors import InvalidRequestError, ModelFolderError
from panoserve.serve.engine import _EngineBase
from panoserve.vq.attention import attend
from panoserve.vq.config import VQ_8, VQ_16, VQConfig
from panoserve.vq.io import load_vq, save_vq
from panoserve.vq.model import VQModel
from panoserve.vq.quantizer import USAGE_RING, VectorQuantizer


@pytest.fixture(scope="module")
def golden_vq16(golden: dict[str, Any]) -> dict[str, Tensor]:
    """Input, z, indices and picture of the full-size VQ-16 (facts.md 9)."""
    return golden["VQ-16"]


@pytest.fixture(scope="module")
def vq16() -> Iterator[VQModel]:
    yield filled_vq(VQ_16)


def test_golden_encode(golden_vq16: dict[str, Tensor], vq16: VQModel) -> None:
    torch.testing.assert_close(vq16.encode_latents(golden_vq16["x"]), golden_vq16["z"], rtol=0, atol=1e-4)
    assert torch.equal(vq16.encode(golden_vq16["x"]).flatten(), golden_vq16["indices"])


def test_golden_decode(golden_vq16: dict[str, Tensor], vq16: VQModel) -> None:
    picture = vq16.decode(golden_vq16["indices"].view(1, 4, 4))
    torch.testing.assert_close(picture, golden_vq16["decoded"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "keys", "parameters", "values"),
    [(VQ_16, 344, 71_883_403, 71_948_939), (VQ_8, 300, 70_109_835, 70_175_371)],
)
def test_published_counts(config: VQConfig, keys: int, parameters: int, values: int) -> None:
    """facts.md 2.1: the numbers of keys, parameters and stored values."""
    with torch.device("meta"):
        model = VQModel(config)
    state = model.state_dict()
    assert len(state) == keys
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(t.numel() for t in state.values()) == values


def test_published_key_names() -> None:
    """facts.md 2.2: a sample from every family, with shapes."""
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in VQModel(VQ_16).state_dict().items()}
    expected = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.conv_blocks.2.res.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.conv_blocks.3.downsample.conv.bias": (256,),
        "encoder.conv_blocks.4.attn.1.proj_out.weight": (512, 512, 1, 1),
        "encoder.mid.1.norm.bias": (512,),
        "encoder.conv_out.weight": (256, 512, 3, 3),
        "decoder.conv_in.weight": (512, 256, 3, 3),
        "decoder.conv_blocks.0.attn.2.q.weight": (512, 512, 1, 1),
        "decoder.conv_blocks.0.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.conv_blocks.1.res.0.nin_shortcut.bias": (256,),
        "decoder.conv_blocks.4.res.2.conv2.weight": (128, 128, 3, 3),
        "decoder.norm_out.weight": (128,),
        "quantize.embedding.weight": (16384, 8),
        "quantize.codebook_used": (65536,),
        "quant_conv.weight": (8, 256, 1, 1),
        "post_quant_conv.bias": (256,),
    }
    assert {key: shapes.get(key) for key in expected} == expected
    assert not any("conv_blocks.4.upsample" in key or "conv_blocks.4.downsample" in key for key in shapes)


def test_downsample_is_a_power_of_the_levels() -> None:
    assert (VQ_16.downsample, VQ_8.downsample, TINY_VQ.downsample) == (16, 8, 4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"channels": 0}, "channels must hold positive"),
        ({"channel_multipliers": ()}, "at least one level"),
        ({"channels": 48, "norm_groups": 32}, "48 channels wide"),
        ({"code_dim": 8.0}, "code_dim must hold positive whole numbers, got 8.0"),
    ],
)
def test_impossible_configs_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ModelFolderError, match=words):
        VQConfig(**values)  # type: ignore[arg-type]


def test_nearest_takes_the_first_of_equal_entries() -> None:
    quantizer = VectorQuantizer(4, 2)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[0.0, 1.0], [3.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
    assert quantizer.nearest(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist() == [1, 0]


def test_nearest_is_the_same_in_one_chunk_or_many(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = VectorQuantizer(64, 4)
    z = torch.nn.functional.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    whole = quantizer.nearest(z)
    assert torch.equal(whole, (z @ quantizer.codebook().T).argmax(dim=1))
    monkeypatch.setattr("panoserve.vq.quantizer.DISTANCES_AT_ONCE", 64 * 7)
    assert torch.equal(quantizer.nearest(z), whole)


def test_lookup_normalises_stored_entries() -> None:
    model = filled_vq(TINY_VQ)
    latents = model.quantize.lookup(torch.tensor([[[3, 5]]]))
    assert latents.shape == (1, 4, 1, 2)
    expected = torch.nn.functional.normalize(model.quantize.embedding.weight[[3, 5]], dim=-1)
    torch.testing.assert_close(latents[0, :, 0].T, expected)
    assert not torch.allclose(model.quantize.embedding.weight[3].norm(), torch.tensor(1.0), atol=0.01)


def test_training_forward_is_straight_through() -> None:
    """The reconstruction's gradient reaches the encoder, and the codebook learns from its own loss alone."""
    torch.manual_seed(0)
    model = VQModel(TINY_VQ).train()
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    reconstruction, loss, codes = model(images)
    assert reconstruction.shape == images.shape and codes.shape == (2, 4, 6)
    reconstruction.square().mean().backward(retain_graph=True)
    assert model.encoder.conv_in.weight.grad is not None
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.quantize.embedding.weight.grad is None
    loss.backward()
    assert model.quantize.embedding.weight.grad is not None
    assert model.quantize.embedding.weight.grad.abs().sum() > 0


def test_training_loss_is_codebook_plus_quarter_commitment() -> None:
    model = filled_vq(TINY_VQ)
    z = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    quantized = model.quantize(z)
    rows = torch.nn.functional.normalize(z, dim=1)
    entries = model.quantize.lookup(quantized.codes)
    torch.testing.assert_close(quantized.loss, 1.25 * (rows - entries).square().mean())
    torch.testing.assert_close(quantized.latents, entries)


def test_training_records_the_newest_codes() -> None:
    quantizer = VectorQuantizer(8, 2).train()
    quantizer(torch.randn(1, 2, 4, 4))
    codes = quantizer(torch.randn(1, 2, 1, 3)).codes.flatten()
    assert quantizer.codebook_used.shape == (USAGE_RING,)
    assert torch.equal(quantizer.codebook_used[-3:].long(), codes)
    assert 0 < quantizer.usage() <= 1
    before = quantizer.codebook_used.clone()
    quantizer.eval()(torch.randn(1, 2, 4, 4))
    assert torch.equal(quantizer.codebook_used, before)


def test_training_under_autocast_keeps_channels_last_and_a_float32_codebook() -> None:
    torch.manual_seed(0)
    model = VQModel(TINY_VQ).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = (torch.rand(2, 3, 16, 16) * 2 - 1).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, loss, _ = model(images)
    assert reconstruction.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert reconstruction.is_contiguous(memory_format=torch.channels_last)
    (reconstruction.float().square().mean() + loss).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_attention_never_holds_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to the textbook formula, in the memory of three times q, in one chunk of queries or many."""
    q, k, v = torch.randn(3, 2, 300, 16, generator=torch.Generator().manual_seed(0)).unbind()
    expected = torch.softmax(q @ k.transpose(1, 2) / 4.0, dim=-1) @ v
    for scores_at_once in (1 << 24, 2 * 300 * 64):
        monkeypatch.setattr("panoserve.vq.attention.SCORES_AT_ONCE", scores_at_once)
        torch.testing.assert_close(attend(q, k, v), expected)
        assert 0 < peak_bytes(lambda: attend(q, k, v)) <= 3 * q.nbytes < 4 * 2 * 300 * 300


def test_encode_names_the_nearest_size() -> None:
    with pytest.raises(InvalidRequestError, match=r"width is 18 pixels.*multiple of 4; the nearest is 16") as caught:
        filled_vq(TINY_VQ).encode(torch.zeros(1, 3, 16, 18))
    assert caught.value.param == "width"


@pytest.mark.parametrize("shape", [(4, 8), (12, 4), (20, 36)])
def test_any_multiple_of_the_downsample_factor_encodes_and_decodes(shape: tuple[int, int]) -> None:
    model = filled_vq(TINY_VQ)
    codes = model.encode(torch.rand(2, 3, *shape) * 2 - 1)
    assert codes.shape == (2, shape[0] // 4, shape[1] // 4) and codes.dtype == torch.int64
    assert model.decode(codes).shape == (2, 3, *shape)


def test_save_and_load(tmp_path: Path) -> None:
    model = filled_vq(TINY_VQ)
    save_vq(model, tmp_path / "vq")
    assert sorted(path.name for path in (tmp_path / "vq").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_vq(tmp_path / "vq")
    assert loaded.config == TINY_VQ and not loaded.training
    codes = torch.arange(32).view(1, 4, 8)
    torch.testing.assert_close(loaded.decode(codes), model.decode(codes), rtol=0, atol=1e-5)
    half = load_vq(tmp_path / "vq", dtype=torch.bfloat16)
    assert half.decode(codes).dtype == torch.bfloat16
    torch.testing.assert_close(half.decode(codes).float(), model.decode(codes), rtol=0, atol=0.05)
    images = torch.rand(1, 3, 16, 32) * 2 - 1
    assert torch.equal(half.encode_latents(images), loaded.encode_latents(images)), "codes do not depend on the dtype"


@pytest.mark.parametrize(
    ("drawn", "instructions", "decoded"),
    [
        ("bfloat16", True, "bfloat16"), ("bfloat16", False, "float32"), ("float16", True, "float32"),
        ("float32", True, "float32"),
    ],
)  # fmt: skip
def test_an_engine_decodes_in_bfloat16_if_it_draws_in_it_and_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: str, instructions: bool, decoded: str
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    class Folder:
        path, has_vq = tmp_path, True
        config = SimpleNamespace(vocab_size=TINY_VQ.codebook_size, downsample=TINY_VQ.downsample)

    class Drawing(_EngineBase):
        folder = Folder()  # type: ignore[assignment]
        vllm_config = SimpleNamespace(model_config=SimpleNamespace(dtype=getattr(torch, drawn)))  # type: ignore[assignment]

    save_vq(filled_vq(TINY_VQ), tmp_path / "vq")
    vq = object.__new__(Drawing).vq
    assert vq.decoder.conv_in.weight.dtype == vq.post_quant_conv.weight.dtype == getattr(torch, decoded)
    assert vq.encoder.conv_in.weight.dtype == vq.quantize.embedding.weight.dtype == torch.float32
    Folder.config.vocab_size += 1
    with pytest.raises(ModelFolderError, match=f"has {TINY_VQ.codebook_size} codes of .* but the model draws"):
        _ = object.__new__(Drawing).vq


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"holds no config\.json"):
        load_vq(tmp_path)
    save_vq(filled_vq(TINY_VQ), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    (tmp_path / "config.json").write_text(json.dumps({**config, "code_dim": 8}))
    with pytest.raises(ModelFolderError, match=r"does not fit its config\.json.*quantize.embedding.weight"):
        load_vq(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": 8}))
    with pytest.raises(ModelFolderError, match=r"unknown keys \['width'\]"):
        load_vq(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFolderError, match="not valid JSON"):
        load_vq(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelFolderError, match="does not fit"):
        load_vq(tmp_path)
