"""Two passes through the engine: the codes of either are those that the reference draws (float32, greedy)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_models import golden_model
from reference_drawer import draw_greedily
from vq_weights import TINY_VQ, filled_vq

from panoserve import Engine, PanoramaRequest
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.two_pass import draw_two_pass

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("loop", [False, True])
def test_both_passes_are_drawn_as_the_reference_does(
    loop: bool, class_engine: Engine, golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer of random weights stands in for the model's own, which the golden vectors lack."""
    model = golden_model(golden["c2i"])
    vq = filled_vq(replace(TINY_VQ, channel_multipliers=(1, 1, 1, 1, 1), codebook_size=model.config.vocab_size))
    monkeypatch.setitem(vars(class_engine), "vq", vq)
    shape: dict[str, Any] = {"width": 16 * 13, "height": 16 * 9, "stride": 3, "row_stride": 2, "loop": loop}
    drawn_as: dict[str, Any] = {"label": 3, "prompts": [{"label": 6, "left": 0.5}], "guidance": 2.0, "temperature": 0.0}
    requests = [PanoramaRequest(**shape, **drawn_as, seed=7, context=context) for context in CONTEXTS]
    for two in draw_two_pass(class_engine, requests, hold=0.3, progress=False):
        assert (two.coarse.request.width, two.coarse.request.height) == (16 * 6, 16 * 4)
        for drawn in (two.coarse, two.panorama):
            assert torch.equal(drawn.codes, draw_greedily(model, drawn.request))
        given = two.panorama.request.given
        assert given is not None and two.panorama.stats.drawn == int((given < 0).sum())
        assert bool((two.panorama.codes == given)[given >= 0].all()), "what is given stays"
        assert two.panorama.image is not None and two.panorama.image.size == (16 * 13, 16 * 9)
