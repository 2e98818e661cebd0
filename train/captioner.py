"""The text side of the embedded model: its tokenizer and its small T5 encoder, both made from nothing.

The tokenizer is a Unigram model of the captions' words, in the T5 manner: pad 0, end 1, unknown 2, one end token
behind every text. Single letters are pieces too, so any English word can be spelled.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from panoserve.train.scenes import sample_spec
from panoserve.train.scenes.captions import caption_of

_ENDINGS = ("es", "ed", "ing", "er", "est", "ly")  # of words that no caption has
PAD, END, UNKNOWN = 0, 1, 2


def make_tokenizer(captions: int = 3000) -> PreTrainedTokenizerFast:
    """A tokenizer whose pieces are the words of that many captions, and all letters; the same on every call."""
    rng = np.random.default_rng(11)
    words = Counter(word for i in range(captions) for word in re.findall("[a-z]+", caption_of(sample_spec(i), rng)))
    total = sum(words.values())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
    pieces += [(letter, -12.0) for letter in string.ascii_lowercase + string.digits + ".,'-!?"]
    pieces += [(f"▁{word}", math.log(count / total)) for word, count in sorted(words.items()) if len(word) > 1]
    pieces += [("▁a", math.log(0.03)), *((ending, -10.0) for ending in _ENDINGS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=UNKNOWN, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def new_encoder(vocabulary: int, width: int = 192, layers: int = 3) -> T5EncoderModel:
    """An untrained T5 encoder whose features are `width` wide."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=32,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=width // 32,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.05,
            pad_token_id=PAD,
            eos_token_id=END,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def tokenize(tokenizer: Any, captions: list[str], limit: int) -> list[list[int]]:
    """The token ids of every caption, the end token last."""
    return list(tokenizer(captions, truncation=True, max_length=limit)["input_ids"])


def save_text_encoder(encoder: Any, tokenizer: Any, folder: Path) -> None:
    """Write encoder (float16) and tokenizer as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(torch.float16).contiguous() for name, value in encoder.state_dict().items()}
    encoder.config.dtype = "float16"
    encoder.save_pretrained(folder, state_dict=weights, safe_serialization=True)
    tokenizer.save_pretrained(folder)
