"""A 3x3 convolution of one picture on a CPU, which is most of a VQ decode, by Winograd's minimal filtering.

Winograd, "Arithmetic complexity of computations" (1980); Lavin and Gray, "Fast algorithms for convolutional neural
networks" (2015), F(4x4, 3x3): a tile of 4 x 4 outputs needs 36 products for each pair of channels where the sums
themselves take 144. Inputs and weights are transformed first, products afterwards, which costs additions and some of
float32's last places (tests say how many). The kernel is native/conv3x3_vectors.h.

`conv3x3_reference` is the specification.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from panoserve.kernels.native import Level, level, native

GROUP, MAX_CHANNELS = 16, 1024  # CONV3X3_GROUP and _CHANNELS in native/native.h
PLANES, PLANE_GAP = 36, 16  # as in native/conv3x3_vectors.h
RUN_NUMBERS = 1 << 18  # of transformed inputs and products that should stay in a core's second cache: 1 MiB

# One dimension of the transform of the weights, for the points 0, 1, -1, 2, -2 and infinity.
TRANSFORM = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)

_packed = WeakTensorKeyDictionary()  # weights to (their state, packed)


def conv3x3_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    padding: tuple[int, int] = (1, 1),
    around: bool = False,
    doubled: bool = False,
    plus: Tensor | None = None,
) -> Tensor:
    """The convolution of x [B, C, H, W] with `weight` [O, C, 3, 3] and `bias` [O].

    padding: zeros beyond upper and lower edge, and beyond left and right edge; around: what is beyond left and right
    edge is instead what is behind the other one; doubled: every position of x stands for 2 x 2; plus: added.
    """
    if doubled:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    if around:
        x = F.pad(x, (padding[1], padding[1], 0, 0), mode="circular")
        padding = (padding[0], 0)
    y = F.conv2d(x, weight, bias, padding=padding)
    return y if plus is None else y + plus


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    padding: tuple[int, int] = (1, 1),
    around: bool = False,
    doubled: bool = False,
    plus: Tensor | None = None,
) -> Tensor:
    """`conv3x3_reference`; by the kernel for one picture in float32 on a CPU, where its channels lie together
    (channels_last, or a part of such a picture) and are multiples of 16, and no gradient is wanted, of weights that are
    not trained.
    """
    outputs, inputs = weight.shape[:2]
    height, width = x.shape[2] << doubled, x.shape[3] << doubled
    shape = (1, outputs, height + 2 * padding[0] - 2, width + 2 * padding[1] - 2)
    if not _fits(x, weight, bias, plus, shape):
        return conv3x3_reference(x, weight, bias, padding=padding, around=around, doubled=doubled, plus=plus)
    y = torch.empty(shape, memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    run = _tiles_in_a_run(-(-shape[2] // 4) * -(-shape[3] // 4), inputs + outputs, threads)
    scratch = torch.empty(threads * PLANES * (run * (inputs + outputs) + 2 * PLANE_GAP))
    packed = _pack_once(weight)
    task = struct.pack(
        "@6P13q",
        *(0 if tensor is None else tensor.data_ptr() for tensor in (x, packed, bias, plus, y, scratch)),
        *(x.shape[2], x.shape[3], x.stride(2), inputs, outputs, *shape[2:]),
        *(*padding, around, doubled, run, threads),
    )
    native().conv3x3(task)  # type: ignore[union-attr]
    return y


def _fits(x: Tensor, weight: Tensor, bias: Tensor, plus: Tensor | None, shape: tuple[int, ...]) -> bool:
    """Whether the kernel can make an output of `shape` of these here."""
    outputs, inputs = weight.shape[:2]
    tensors = [tensor for tensor in (x, weight, bias, plus) if tensor is not None]
    return (
        level() >= Level.AVX2
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and x.shape[:2] == (1, inputs)
        and (x.stride(1), x.stride(3)) == (1, inputs)
        and weight.shape[2:] == (3, 3)
        and inputs % GROUP == outputs % GROUP == 0
        and max(inputs, outputs) <= MAX_CHANNELS
        and not weight.requires_grad  # it may change (fused optimisers do so without a word), and it is packed once
        and not weight.is_inference()  # neither is known of these
        and (plus is None or (plus.shape == shape and plus.is_contiguous(memory_format=torch.channels_last)))
    )


def pack(weight: Tensor) -> Tensor:
    """`weight` [O, C, 3, 3] transformed and in the order in which the kernel reads it: [36, O / 16, C, 16]."""
    outputs, inputs = weight.shape[:2]
    packed = torch.empty(PLANES, outputs // GROUP, inputs, GROUP)
    for group, part in enumerate(weight.split(GROUP)):
        planes = TRANSFORM @ part.double() @ TRANSFORM.T  # [16, C, 6, 6]
        packed[:, group] = planes.flatten(2).permute(2, 1, 0)
    return packed


def _pack_once(weight: Tensor) -> Tensor:
    """`pack`, remembered until the weight changes or goes."""
    state = (weight.data_ptr(), weight._version)
    known = _packed.get(weight)
    if known is None or known[0] != state:
        known = _packed[weight] = (state, pack(weight.detach()))
    return known[1]


def _tiles_in_a_run(tiles: int, channels: int, threads: int) -> int:
    """As many as keep a run's numbers within the cache, and as give every thread as many runs."""
    most = max(12, RUN_NUMBERS // (PLANES * channels))
    runs = -(-tiles // most)
    return -(-tiles // (-(-runs // threads) * threads))
