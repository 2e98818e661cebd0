"""Upstream checkpoints to model folders: what is recognised, what is written, and what is refused."""

from __future__ import annotations

import argparse
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from live_memory import peak_bytes
from safetensors.torch import load_file, save_file
from torch import Tensor
from vq_weights import filled_vq

from panoserve.checkpoint import open_checkpoint, write_safetensors
from panoserve.configs.model import ModelConfig, SamplingDefaults
from panoserve.convert import convert_llamagen
from panoserve.errors import CheckpointError
from panoserve.models.convert import Options, published, recognise
from panoserve.models.reference import ReferenceModel
from panoserve.vq import convert as vq_convert
from panoserve.vq.config import VQ_8, VQ_16, VQConfig
from panoserve.vq.io import load_vq

VQ_SMALL = VQConfig(
    channels=32, channel_multipliers=(1, 2), num_res_blocks=1, z_channels=8, codebook_size=97, code_dim=4
)

# facts.md 1.1: layers, heads, width, FFN width, parameters and keys of the class-conditional model with 1000 classes.
SIZES = {
    "GPT-B": (12, 12, 768, 2048, 110_888_448, 88),
    "GPT-L": (24, 16, 1024, 2816, 342_910_976, 172),
    "GPT-XL": (36, 20, 1280, 3584, 774_699_520, 256),
    "GPT-XXL": (48, 24, 1536, 4096, 1_410_972_672, 340),
    "GPT-XXXL": (48, 40, 2560, 6912, 3_893_027_840, 340),
    "GPT-1B": (22, 32, 2048, 5632, 1_199_616_000, 158),
    "GPT-3B": (24, 32, 3200, 8704, 3_096_659_200, 172),
    "GPT-7B": (32, 32, 4096, 11008, 6_614_589_440, 228),
}


def shapes(layers: int, width: int, ffn: int, vocab: int, *, classes: int = 0, caption: int = 0) -> dict[str, Any]:
    """Key names and shapes as written in facts.md 1.5, apart from any model class. `classes` counts the null row."""
    found: dict[str, Any] = {"tok_embeddings.weight": (vocab, width), "output.weight": (vocab, width)}
    found["norm.weight"] = (width,)
    if classes:
        found["cls_embedding.embedding_table.weight"] = (classes, width)
    if caption:
        found["cls_embedding.uncond_embedding"] = (120, caption)
        found["cls_embedding.cap_proj.fc1.weight"] = (width, caption)
        found["cls_embedding.cap_proj.fc2.weight"] = (width, width)
    for layer in (f"layers.{i}" for i in range(layers)):
        found[f"{layer}.attention.wqkv.weight"] = (3 * width, width)
        found[f"{layer}.attention.wo.weight"] = (width, width)
        found[f"{layer}.feed_forward.w1.weight"] = found[f"{layer}.feed_forward.w3.weight"] = (ffn, width)
        found[f"{layer}.feed_forward.w2.weight"] = (width, ffn)
        found[f"{layer}.attention_norm.weight"] = found[f"{layer}.ffn_norm.weight"] = (width,)
    return found


def meta_state(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors with shapes and no memory."""
    return {key: torch.empty(shape, device="meta") for key, shape in found.items()}


def random_state(**kind: int) -> dict[str, Tensor]:
    """A tiny transformer: 2 layers of width 16."""
    generator = torch.Generator().manual_seed(0)
    found = shapes(2, 16, 48, 97, **kind)
    return {key: torch.randn(shape, generator=generator) for key, shape in found.items()}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(content: object, name: str = "mine.pt") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def refusal(checkpoint: Path, **options: Any) -> str:
    """The one-line message with which the conversion is refused; nothing may have been written."""
    before = sorted(checkpoint.parent.iterdir()) if checkpoint.parent.is_dir() else []
    with pytest.raises(CheckpointError) as caught:
        convert_llamagen(checkpoint, checkpoint.parent / "out", **{"grid": 4, "heads": 2, **options})
    assert not checkpoint.parent.is_dir() or sorted(checkpoint.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is recognised ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_every_size_is_recognised_from_its_shapes(name: str) -> None:
    layers, heads, width, ffn, parameters, keys = SIZES[name]
    state = meta_state(shapes(layers, width, ffn, 16384, classes=1001))
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (keys, parameters)
    config = recognise(state, "unknown", Options(grid=24))
    assert config == ModelConfig.preset(
        name,
        grid_side=24,
        downsample=16,
        condition="class",
        num_classes=1000,
        sampling=SamplingDefaults(guidance=4.0, top_k=2000),
    )
    assert (config.num_attention_heads, config.intermediate_size) == (heads, ffn)


def test_the_published_text_model_is_recognised() -> None:
    state = meta_state(shapes(36, 1280, 3584, 16384, caption=2048))
    assert len(state) == 258 and sum(tensor.numel() for tensor in state.values()) == 777_923_840  # facts.md 1.1
    config = recognise(state, "t2i_XL_stage2_512", Options())
    assert config == ModelConfig.preset(
        "XL",
        grid_side=32,
        downsample=16,
        condition="caption",
        caption_dim=2048,
        caption_length=120,
        sampling=SamplingDefaults(guidance=7.5, top_k=1000),
    )


def test_published_names_tell_the_grid() -> None:
    """facts.md 1.6: the number in the name is the picture's side in pixels, of 16 pixels a code."""
    for name, entry in published().items():
        assert entry["grid"] * 16 == int(name.rsplit("_", 1)[1])
    state = meta_state(shapes(12, 768, 2048, 16384, classes=1001))
    assert recognise(state, "c2i_B_256", Options()).grid_side == 16
    assert recognise(state, "c2i_B_384", Options()).grid_side == 24
    assert recognise(state, "c2i_B_384", Options(grid=16)).grid_side == 16  # what the user says comes first


def test_the_docs_list_every_published_file() -> None:
    """docs/checkpoints.md against configs/presets/published.yaml; XL and XXL at 256 pixels are NPP's."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    for name, entry in published().items():
        if name in ("c2i_XL_256", "c2i_XXL_256"):
            assert "`c2i_{B,L,XL,XXL}_256.pt` of NPP" in page
        else:
            assert f"| `{name}.pt` | {entry['size']} | {entry['grid']} | {16 * entry['grid']} px |" in page


@pytest.mark.parametrize(("config", "downsample"), [(VQ_16, 16), (VQ_8, 8), (VQ_SMALL, 2)])
def test_tokenizers_are_recognised(config: VQConfig, downsample: int) -> None:
    recognised = vq_convert.recognise(meta_state(vq_convert.expected_shapes(config)))
    assert recognised == config
    assert recognised.downsample == downsample


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["model", "module", "state_dict", None])
def test_containers_and_computed_tables(save: Callable[..., Path], tmp_path: Path, container: str | None) -> None:
    state = random_state(classes=11)
    old = {"freqs_cis": torch.zeros(17, 8, 2), "layers.0.attention.kv_cache.k_cache": torch.zeros(1, 2, 24, 8)}
    content: dict[str, Any] = {**state, **old}
    if container:
        content = {"ema": {"a": torch.zeros(1)}, "steps": 7, "args": argparse.Namespace(seed=0), container: content}
    config = convert_llamagen(save(content), tmp_path / "out", grid=4, heads=2)
    assert config == ModelConfig.load(tmp_path / "out")
    assert (config.num_classes, config.num_attention_heads, config.grid_side) == (10, 2, 4)
    assert config.sampling == SamplingDefaults(guidance=4.0, top_k=0)  # 2000 of 97 codes would cut nothing
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], state[key]) for key in state)
    ReferenceModel(config).load_state_dict(written, strict=True)


def test_a_whole_folder(save: Callable[..., Path], tmp_path: Path, t5: Path) -> None:
    vq = save({"model": filled_vq(VQ_SMALL).state_dict()}, "vq.pt")
    config = convert_llamagen(
        save({"model": random_state(caption=24)}), tmp_path / "a" / "out", vq=vq, text_encoder=t5, grid=4, heads=2
    )
    out = tmp_path / "a" / "out"
    assert (config.condition, config.caption_dim, config.caption_length, config.downsample) == ("caption", 24, 120, 2)
    codes = torch.arange(8).view(1, 2, 4)
    torch.testing.assert_close(load_vq(out / "vq").decode(codes), filled_vq(VQ_SMALL).decode(codes), rtol=0, atol=1e-5)
    kept = sorted(path.name for path in (out / "text_encoder").iterdir())
    assert kept == ["config.json", "model.safetensors", "tokenizer.json"]
    assert os.path.samefile(out / "text_encoder" / "model.safetensors", t5 / "model.safetensors")
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    umask = os.umask(0)
    os.umask(umask)
    for path in (out / "model.safetensors", out / "config.json", out / "vq" / "model.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    """What a published text encoder's folder looks like, in name: two formats, hidden files, a sub-folder."""
    folder = tmp_path / "t5"
    (folder / ".cache").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 24}))
    for name in ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "tokenizer.json", ".gitattributes"):
        (folder / name).write_text(name)
    return folder


def test_weights_of_pickled_text_encoders_are_taken_where_there_is_nothing_better(
    save: Callable[..., Path], tmp_path: Path, t5: Path
) -> None:
    (t5 / "model.safetensors").unlink()
    convert_llamagen(save(random_state(caption=24)), tmp_path / "out", text_encoder=t5, grid=4, heads=2)
    assert (tmp_path / "out" / "text_encoder" / "pytorch_model.bin").is_file()


def test_copies_where_links_do_not_work(
    save: Callable[..., Path], tmp_path: Path, t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError("another device")

    monkeypatch.setattr(os, "link", no_link)
    convert_llamagen(save(random_state(caption=24)), tmp_path / "out", text_encoder=t5, grid=4, heads=2)
    copy = tmp_path / "out" / "text_encoder" / "model.safetensors"
    assert copy.read_text() == "model.safetensors" and copy.stat().st_nlink == 1


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_dtype(save: Callable[..., Path], tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    state = random_state(classes=11)
    convert_llamagen(save(state), tmp_path / "out", grid=4, heads=2, dtype=name)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[key], state[key].to(dtype)) for key in state)


def test_mixed_dtypes_stay(tmp_path: Path) -> None:
    state = {
        "a": torch.randn(3).bfloat16(),
        "b": torch.randn(2, 5),
        "c": torch.randn(1).half(),
        "empty": torch.zeros(0),
    }
    write_safetensors(tmp_path / "x.safetensors", state)
    written = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(written[key], state[key]) and written[key].dtype == state[key].dtype for key in state)


def test_one_tensor_is_held_at_a_time(save: Callable[..., Path], tmp_path: Path) -> None:
    """Memory-mapped in, converted one by one: never a copy of the whole."""
    state = {f"{i}": torch.zeros(1000, 100) for i in range(20)}
    opened = open_checkpoint(save({"model": state}))
    peak = peak_bytes(lambda: write_safetensors(tmp_path / "x.safetensors", opened, torch.bfloat16))
    assert 200_000 <= peak <= 2_000_000  # one in bfloat16 is 200 kB, with its check for NaN in float32; all are 8 MB


def test_no_null_class(save: Callable[..., Path], tmp_path: Path) -> None:
    config = convert_llamagen(save(random_state(classes=11)), tmp_path / "out", grid=4, heads=2, null_class=False)
    assert (config.num_classes, config.unconditional, config.sampling.guidance) == (11, False, 1.0)


def test_safetensors_and_old_torch_files_are_read_too(tmp_path: Path) -> None:
    state = random_state(classes=11)
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"model": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "old.pt"):
        opened = open_checkpoint(tmp_path / name)
        assert all(torch.equal(opened[key], state[key]) for key in state)


@pytest.mark.parametrize("kind", ["c2i", "t2i"])
def test_golden_models_convert(kind: str, golden: dict[str, Any], save: Callable[..., Path], tmp_path: Path) -> None:
    config = convert_llamagen(save({"model": golden[kind]["sd"]}), tmp_path / "out", grid=4, heads=2)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (64, 3, 97)
    assert config.num_classes == (10 if kind == "c2i" else 0)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_differences_are_named(save: Callable[..., Path]) -> None:
    state = random_state(classes=11)
    del state["layers.1.attention.wo.weight"], state["norm.weight"]
    state["layers.0.attention.wqkv.weight"] = torch.zeros(16, 48)
    state.update({f"extra.{i}": torch.zeros(1) for i in range(6)})
    message = refusal(save(state))
    assert "2 missing (layers.1.attention.wo.weight, norm.weight)" in message
    assert "6 unexpected (extra.0, extra.1, extra.2, extra.3, and 2 more)" in message
    assert "1 mis-shaped (layers.0.attention.wqkv.weight is (16, 48), expected (48, 16))" in message


def test_what_shapes_do_not_tell_is_asked_for(save: Callable[..., Path]) -> None:
    path = save(random_state(classes=11))
    assert "give it with --grid" in refusal(path, grid=None)
    assert "2 layers of width 16 are no published size" in refusal(path, heads=None)
    assert "--heads is 0" in refusal(path, heads=0)
    assert "--grid is 0" in refusal(path, grid=0)
    assert "16 is not a multiple of num_attention_heads 3" in refusal(path, heads=3)


def test_a_published_name_on_another_model_is_not_believed(save: Callable[..., Path]) -> None:
    path = save(random_state(classes=11), "c2i_B_256.pt")
    assert "has the name of a published class-conditional GPT-B, but holds" in refusal(path, grid=None)


def test_heads_that_contradict_a_published_size() -> None:
    state = meta_state(shapes(12, 768, 2048, 16384, classes=1001))
    with pytest.raises(CheckpointError, match="shapes of GPT-B, which has 12 heads"):
        recognise(state, "c2i_B_256", Options(heads=16))


OTHER_KINDS = {
    "a LlamaGen VQ tokenizer": {"encoder.conv_blocks.0.res.0.norm1.weight": torch.zeros(32)},
    "a DnD-Transformer": {
        **random_state(classes=11),
        "norm.0.weight": torch.zeros(16),
        "output.0.weight": torch.zeros(1),
    },
    "an RQ-VAE": {
        "quantizer.codebooks.0.weight": torch.zeros(3, 2),
        "encoder.down.0.block.0.norm1.weight": torch.zeros(2),
    },
    "a T5 text encoder": {"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(2, 2)},
    "without its condition embedder": {"layers.0.attention.wqkv.weight": torch.zeros(48, 16)},
    "its first keys are a, b": {"b": torch.zeros(1), "a": torch.zeros(1)},
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_another_kind_of_checkpoint_is_named(kind: str, save: Callable[..., Path]) -> None:
    assert kind in refusal(save({"model": OTHER_KINDS[kind]}))


def test_a_transformer_where_a_tokenizer_was_expected(save: Callable[..., Path]) -> None:
    path = save(random_state(classes=11))
    assert "expected a LlamaGen VQ tokenizer" in refusal(path, vq=path)
    assert "looks like a class-conditional LlamaGen transformer" in refusal(path, vq=path)


def test_a_tokenizer_that_lacks_a_key(save: Callable[..., Path]) -> None:
    state = filled_vq(VQ_SMALL).state_dict()
    del state["quantize.codebook_used"]
    vq = save(state, "vq.pt")
    assert "1 missing (quantize.codebook_used)" in refusal(save(random_state(classes=11)), vq=vq)


def test_parts_that_do_not_belong_together(save: Callable[..., Path], t5: Path) -> None:
    captions, classes = save(random_state(caption=32)), save(random_state(classes=11), "classes.pt")
    other_vq = VQConfig(32, (1, 2), 1, 8, 50, 4)
    assert "draws 97 codes, but the tokenizer has 50" in refusal(
        classes, vq=save(filled_vq(other_vq).state_dict(), "vq.pt")
    )
    assert "gives 24 features a token, but the transformer reads 32" in refusal(captions, text_encoder=t5)
    assert "class-conditional and reads no captions" in refusal(classes, text_encoder=t5)
    same_vq = save(filled_vq(VQ_SMALL).state_dict(), "vq2.pt")
    assert "downsample is 16, but the tokenizer's is 2" in refusal(classes, vq=same_vq, downsample=16)


def test_a_folder_that_is_no_text_encoder(save: Callable[..., Path], t5: Path) -> None:
    captions = save(random_state(caption=24))
    assert "is not the folder of a T5 encoder" in refusal(captions, text_encoder=t5 / ".cache")
    (t5 / "tokenizer.json").unlink()
    assert "holds no tokenizer" in refusal(captions, text_encoder=t5)
    (t5 / "model.safetensors").unlink()
    (t5 / "pytorch_model.bin").unlink()
    assert "holds no weights" in refusal(captions, text_encoder=t5)
    (t5 / "config.json").write_text(json.dumps({"model_type": "clip", "d_model": 24}))
    assert "is a 'clip' model, expected 't5'" in refusal(captions, text_encoder=t5)


class Surprise:
    """Something that only a full pickle load could build."""


def test_files_that_are_no_checkpoints(save: Callable[..., Path], tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere.pt")
    assert "is a folder" in refusal(tmp_path)
    whole = save({"model": random_state(classes=11)})
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole.read_bytes()[:-3000])
    assert "cut short or damaged" in refusal(cut)
    text = tmp_path / "text.pt"
    text.write_text("<html>not found</html>")
    assert "not a checkpoint that torch.save wrote" in refusal(text)
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "empty.pt cannot be read" in refusal(tmp_path / "empty.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    assert "not a whole safetensors file" in refusal(tmp_path / "bad.safetensors")
    assert "wants to build a " in refusal(save({"model": random_state(classes=11), "x": Surprise()}, "code.pt"))
    assert "holds a list" in refusal(save([1, 2], "list.pt"))
    assert "holds no state dict" in refusal(save({"model": {"a": 1}}, "number.pt"))
    assert "holds no state dict" in refusal(save({"model": {}}, "nothing.pt"))


def test_damaged_weights_leave_nothing_behind(save: Callable[..., Path]) -> None:
    state = random_state(classes=11)
    state["norm.weight"][3] = float("nan")
    assert "norm.weight holds NaN or infinity" in refusal(save(state))
    state["norm.weight"][3] = 1e6
    assert "norm.weight holds NaN or infinity" in refusal(save(state), dtype="float16")
    state["norm.weight"] = torch.ones(16, dtype=torch.int64)
    assert "norm.weight is torch.int64" in refusal(save(state))
    assert "dtype is 'int8'" in refusal(save(state), dtype="int8")


def test_destinations(save: Callable[..., Path], tmp_path: Path) -> None:
    first, second = save(random_state(classes=11), "a.pt"), save(random_state(classes=8), "b.pt")
    out = tmp_path / "out"
    out.mkdir()
    convert_llamagen(first, out, grid=4, heads=2)  # an empty folder is fine
    assert "is not empty" in refusal(second)
    assert ModelConfig.load(out).num_classes == 10
    convert_llamagen(second, out, grid=4, heads=2, overwrite=True)
    assert ModelConfig.load(out).num_classes == 7
    (out / "config.json").write_text("{}")
    assert "no model folder, so it is not overwritten" in refusal(second, overwrite=True)
    with pytest.raises(CheckpointError, match="is a file"):
        convert_llamagen(first, second, grid=4, heads=2, overwrite=True)
    with pytest.raises(CheckpointError, match="cannot write"):
        convert_llamagen(first, second / "below", grid=4, heads=2)
