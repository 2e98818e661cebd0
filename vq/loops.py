"""Decode a loop: with its edges joined, and with colours that change abruptly across them made to change gradually.

The crop that closes a loop cannot always meet both of its neighbours (docs/redirection.md): the sky may end in one
colour on the left of the edge and begin in another on the right of it, within a code or two. Such a change is spread
over REACH codes to either side. What counts is the part of it that is abrupt: a change that is as strong farther from
the edge as near it is gradual already, and taking it out of the middle would turn it round there. Shapes stay as they
are: what stands at the edge and ends there still ends there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from panoserve.vq.model import VQModel
from panoserve.vq.tiled import DEFAULT_MEMORY, decode_tiled

# Codes from the edge. Chosen on 48 loops of the embedded model, by figures and by looking (docs/log.md).
NEAR, FAR = 1, 2  # where colours left and right of the edge are compared, each over one code's width
ABRUPT = 1.25  # how far the decoder spreads a change from one code to the next
REACH = 9  # how far it is spread in its place
SMOOTHING = 0.5  # codes along the edge to either side: over how much of it differences are averaged


@torch.inference_mode()
def decode_loop(model: VQModel, codes: Tensor, memory: int = DEFAULT_MEMORY) -> Tensor:
    """Codes [B, h, w] of loops -> pictures float32 [B, 3, H, W] in about [-1, 1]; `memory` as in `decode_tiled`."""
    pictures = decode_tiled(model, codes, memory=memory, around=True)
    spread_abrupt(pictures, model.config.downsample)
    return pictures


def spread_abrupt(pictures: Tensor, step: int) -> None:
    """Make abrupt changes of colour across the edge of loops [B, 3, H, W] gradual, in place; `step` pixels a code.

    No row's mean colour changes, and nothing farther than REACH codes from the edge.
    """
    width = pictures.shape[3]
    if width < (2 * FAR + 1) * step:
        return  # too narrow to compare: what lies left of the edge would lie right of it, too
    reach, abrupt = min(REACH * step, width // 2), ABRUPT * step
    far = _difference(pictures, FAR, step)
    near = _difference(pictures, NEAR, step)
    sudden = (near - far * (NEAR / FAR)) / (1 - NEAR / FAR)  # what is left of `near` without a gradual change
    share = (sudden * far).sum(1, keepdim=True) / (far * far).sum(1, keepdim=True).clamp(min=1e-9)
    change = far * share.clamp(0, 1)
    places = torch.arange(-reach, reach, device=pictures.device) + 0.5
    gradual = _eased(places, reach) - _eased(places, abrupt)
    more = change[..., None] * gradual  # [B, 3, H, 2 * reach], the edge in its middle
    pictures[..., :reach] += more[..., reach:]
    pictures[..., width - reach :] += more[..., :reach]


def _difference(pictures: Tensor, codes: int, step: int) -> Tensor:
    """How much brighter each row [B, 3, H] is that many codes right of the edge than left of it, smoothed along it."""
    width, begin = pictures.shape[3], codes * step - step // 2
    right = pictures[..., begin : begin + step].mean(-1)
    left = pictures[..., width - begin - step : width - begin].mean(-1)
    side = round(SMOOTHING * step)
    return functional.avg_pool1d(functional.pad(right - left, (side, side), mode="replicate"), 2 * side + 1, stride=1)


def _eased(places: Tensor, reach: float) -> Tensor:
    """From 0 at -reach to 1 at reach, smoothly."""
    share = (places / (2 * reach) + 0.5).clamp(0, 1)
    return share * share * (3 - 2 * share)
