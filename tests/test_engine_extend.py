"""An extension through the engine: its codes are those that the reference draws (float32, greedy)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden_models import golden_model
from PIL import Image
from reference_drawer import draw_greedily
from vq_weights import TINY_VQ, filled_vq

from panoserve import Engine, PanoramaRequest
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.extend import Sides, extend_picture

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_side_is_drawn_as_the_reference_does(
    context: str, caption_engine: Engine, golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer of random weights stands in for the model's own, which the golden vectors lack."""
    case = golden["t2i"]
    model = golden_model(case)
    vq = filled_vq(replace(TINY_VQ, channel_multipliers=(1, 1, 1, 1, 1), codebook_size=model.config.vocab_size))
    monkeypatch.setitem(vars(caption_engine), "vq", vq)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 83, 3), dtype=np.uint8))
    features = case["cond"][0][case["mask"][0].bool()]
    request = PanoramaRequest(features=features, guidance=3.0, temperature=0.0, stride=3, context=context)
    made = extend_picture(caption_engine, picture, Sides(left=70, right=40, up=20, down=90), request, progress=False)
    assert made.image.size == (70 + 83 + 40, 20 + 70 + 90)
    assert np.array_equal(np.array(made.image)[20:90, 70:153], np.array(picture))
    wrong = {
        side: int((drawing.codes != draw_greedily(model, drawing.request)).sum())
        for side, drawing in made.drawings.items()
    }
    assert wrong == dict.fromkeys(("left", "right", "up", "down"), 0)
    for drawing in made.drawings.values():
        given = drawing.request.given
        assert given is not None
        assert bool((drawing.codes == given)[given >= 0].all()), "what is given stays"
