"""Caption cleaning, step by step, and the T5 encoder with a tiny random model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_folder import write_text_encoder

from panoserve.errors import ModelFolderError
from panoserve.models.cleaning import clean_once
from panoserve.models.text import MAX_CHARACTERS, TextEncoder, clean_caption

# Number of the step in facts.md 1.10, text, the text after one pass. Most examples have one step to do.
STEPS = [
    (2, "a%20red+sky", "a red sky"),
    (3, "  A Red SKY ", "a red sky"),
    (4, "a <person> walks", "a person walks"),
    (5, "sky at https://sky.example.com/a/b-c now", "sky at now"),
    (5, "sky at photos.example.org/x/ now", "sky at now"),
    (5, "https:sky now", "ky now"),  # the scheme takes slashes or one character, not the host
    (5, "sky.com@night", "sky. com"),  # not a link before "@"; then step 8 and step 38
    (6, "sky www:/sky now", "sky sky now"),
    (7, "<b>red</b> sky<br>", "red sky"),
    (8, "sky by @nick_7 now", "sky by now"),
    (9, "sky \u31c0\u31f0\u3200\u3300\u3400\u4dc0\u4e00 now", "sky now"),
    (10, "sea\u2014sky \u2013\u2014 x", "sea-sky - x"),
    (11, "a «red» sky’s edge", 'a "red" sky\'s edge'),
    (12, "red &amp;quot; sky", "red sky"),  # step 7 makes it &quot;
    (13, "red &amp;amp; sky", "red ; sky"),
    (14, "at 10.0.0.1 now", "at now"),
    (15, "sky 2:30 \\n", "sky 2:30"),  # the text was stripped in step 3: never at its end, but see the next line
    (15, "sky 2:30 <br>", "sky"),
    (16, "red\\nsky", "red sky"),
    (17, "sky #123 now", "sky now"),
    (18, "sky #12345 now", "sky now"),
    (19, "sky 1234567 now", "sky now"),
    (19, "sky 12345 now", "sky 12345 now"),
    (20, "sky my-file.jpeg now", "sky now"),
    (21, "a ''red'' sky", 'a "red" sky'),
    (22, "red.... sky", "red sky"),
    (23, "red [sky] ~ (sea) *", "red sky sea"),
    (23, "red \\ sky / sea", "red sky sea"),
    (24, "red . sky", "red sky"),
    (25, "a-b-c-d", "a-b-c-d"),
    (25, "a-b-c_d-e", "a b c d e"),
    (26, "ﬁne sky", "fine sky"),
    (27, "sky ab1234 now", "sky now"),
    (28, "sky abc12de now", "sky now"),
    (29, "sky 12ab34 now", "sky now"),
    (30, "sky worldwide free shipping now", "sky now"),
    (30, "sky shipping", "sky"),
    (31, "free download free sky", "sky"),
    (32, "sky click for details now", "sky now"),
    (33, "sky png images now", "sky now"),
    (33, "pngsky now", "sky now"),  # no end boundary is required
    (34, "sky page 12 now", "sky now"),
    (35, "sky 1ab2cd3x now", "sky now"),
    (36, "sky 10.5×20 now", "sky now"),
    (36, "sky 10х20.5 now", "sky now"),  # the Cyrillic letter
    (36, "sky 10.5x20 now", "sky 10. now"),  # step 29 has taken the Latin one
    (37, "sky :  sea", "sky: sea"),
    (38, "red,green.blue", "red, green. blue"),
    (38, "1,2 sky", "1,2 sky"),
    (39, "red \t sky", "red sky"),
    (41, "'red sky'", "red sky"),
    (42, "-red sky", "red sky"),
    (42, ";red sky", "red sky"),
    (43, "red sky:", "red sky"),
    (44, ".red", ""),
    (45, "_ red sky", "red sky"),
]


@pytest.mark.parametrize(("step", "text", "cleaned"), STEPS, ids=[f"{step}: {text}" for step, text, _ in STEPS])
def test_one_pass(step: int, text: str, cleaned: str) -> None:
    assert clean_once(text) == cleaned


def test_every_step_that_does_anything_has_an_example() -> None:
    assert {step for step, _, _ in STEPS} == set(range(2, 46)) - {40}


def test_cleaning_is_applied_twice() -> None:
    """The second pass sees what the first one uncovered."""
    text = "%2520red"
    assert clean_once(text) == "%20red"
    assert clean_caption(text) == "red"


def test_plain_prompts_are_left_alone() -> None:
    prompt = "a red sunset over the sea, with two boats"
    assert clean_caption(prompt) == prompt


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random T5 encoder and a word tokenizer that ends every text with </s>."""
    folder = tmp_path_factory.mktemp("t5")
    write_text_encoder(folder, ("a", "red", "sky", "sea", "boat"), layers=2)
    return folder


@pytest.fixture(scope="module")
def encoder(t5_folder: Path) -> TextEncoder:
    return TextEncoder(t5_folder, max_length=6, dtype=torch.float32)


def test_only_valid_rows_are_returned(encoder: TextEncoder) -> None:
    encoded = encoder.encode(["A red sky", "sea", ""])
    assert encoder.caption_dim == 16
    assert [text.features.shape for text in encoded] == [(4, 16), (2, 16), (1, 16)]  # </s> is a valid row
    assert not any(text.truncated for text in encoded)


def test_padding_and_batches_change_nothing(encoder: TextEncoder) -> None:
    prompts = ["a red sky", "sea", "a red boat sea", "boat"]
    alone = [encoder.encode([prompt])[0].features for prompt in prompts]
    encoder.batch_size = 3
    for one, together in zip(alone, encoder.encode(prompts), strict=True):
        torch.testing.assert_close(together.features, one, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(alone[1][-1], alone[3][-1], atol=1e-3)


def test_features_are_those_of_the_padded_upstream_call(encoder: TextEncoder) -> None:
    """Upstream pads to max_length and keeps the rows that the mask names."""
    ids = torch.tensor([[4, 5, 1, 0, 0, 0]])
    with torch.inference_mode():
        states = encoder.model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    torch.testing.assert_close(encoder.encode(["red sky"])[0].features, states[0, :3], rtol=1e-5, atol=1e-6)


def test_truncation_is_reported(encoder: TextEncoder) -> None:
    fits, too_long = encoder.encode(["a red sky a red", "a red sky a red sea"])
    assert (fits.features.shape[0], fits.truncated) == (6, False)
    assert (too_long.features.shape[0], too_long.truncated) == (6, True)
    torch.testing.assert_close(too_long.features, fits.features, rtol=1e-5, atol=1e-6)  # </s> still comes last


def test_dtype(t5_folder: Path) -> None:
    assert TextEncoder(t5_folder).encode(["sea"])[0].features.dtype == torch.bfloat16


def test_a_folder_that_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"holds no config\.json"):
        TextEncoder(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ModelFolderError, match="cannot be loaded as a T5 encoder"):
        TextEncoder(tmp_path)


def test_what_no_parser_takes_for_markup_is_text() -> None:
    assert "lake" in clean_caption("a <![x[ lake")


def test_a_very_long_prompt_is_cut_before_it_is_cleaned_and_says_so(encoder: TextEncoder) -> None:
    """Its web addresses go, so that what is left would fit: that it was cut is known all the same."""
    short, long = encoder.encode(["sky " + "a.com " * 10, "sky " + "a.com " * MAX_CHARACTERS])
    assert torch.equal(short.features, long.features)
    assert (short.truncated, long.truncated) == (False, True)
