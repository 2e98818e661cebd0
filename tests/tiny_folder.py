"""A complete model folder of random weights, small enough that a picture takes a moment: transformer, VQ, T5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from golden_models import random_model, write_folder
from vq_weights import TINY_VQ, filled_vq

from panoserve.configs.model import ModelConfig, SamplingDefaults
from panoserve.vq.io import save_vq

WORDS = ("a", "red", "sky", "sea", "boat", "hill", "over", "the", "blue", "night")
TEXT_WIDTH = 16

TINY_CONFIG = ModelConfig(
    vocab_size=TINY_VQ.codebook_size,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=256,
    grid_side=8,
    downsample=TINY_VQ.downsample,
    condition="caption",
    caption_dim=TEXT_WIDTH,
    caption_length=6,
    sampling=SamplingDefaults(guidance=2.0),
)


def write_text_encoder(folder: Path, words: Sequence[str] = WORDS, layers: int = 1) -> None:
    """A random T5 encoder and a tokenizer that knows `words` and ends every text with </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    pieces = ["<pad>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(pieces),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=layers,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    T5EncoderModel(config).save_pretrained(folder)


def write_tiny_folder(folder: Path) -> Path:
    write_folder(random_model(TINY_CONFIG), folder)
    save_vq(filled_vq(TINY_VQ), folder / "vq")
    write_text_encoder(folder / "text_encoder")
    return folder
