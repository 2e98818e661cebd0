"""The VQ tokenizer: encoder, codebook, decoder (facts.md 2). Its state dict has exactly the published key names."""

from __future__ import annotations

from torch import Tensor, nn

from panoserve.errors import InvalidRequestError
from panoserve.vq.config import VQConfig
from panoserve.vq.layers import (
    AttnBlock,
    Downsample,
    Level,
    ResBlock,
    Upsample,
    convolve,
    group_norm,
    new_conv3x3,
    normed_swish,
)
from panoserve.vq.quantizer import VectorQuantizer


def _middle(width: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(width, width, groups), AttnBlock(width, groups), ResBlock(width, width, groups)])


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] to z [B, z_channels, H / downsample, W / downsample]."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths, groups, last = config.widths, config.norm_groups, len(config.widths) - 1
        self.conv_in = new_conv3x3(3, widths[0])
        self.conv_blocks = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                width,
                groups,
                blocks=config.num_res_blocks,
                attention=i == last,
                resample=Downsample(width) if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid = _middle(widths[last], groups)
        self.norm_out = group_norm(widths[last], groups)
        self.conv_out = new_conv3x3(widths[last], config.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.conv_blocks, *self.mid):
            x = block(x)
        return self.conv_out(normed_swish(self.norm_out, x, spent=True))


class Decoder(nn.Module):
    """z [B, z_channels, h, w] to pictures [B, 3, h * downsample, w * downsample]; conv_blocks.0 is the coarsest."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths, groups = config.widths[::-1], config.norm_groups
        last = len(widths) - 1
        self.conv_in = new_conv3x3(config.z_channels, widths[0])
        self.mid = _middle(widths[0], groups)
        self.conv_blocks = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                width,
                groups,
                blocks=config.num_res_blocks + 1,
                attention=i == 0,
                resample=Upsample(width) if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = group_norm(widths[last], groups)
        self.conv_out = new_conv3x3(widths[last], 3)

    def forward(self, z: Tensor, around: bool = False) -> Tensor:
        x = convolve(self.conv_in, z, around)
        for block in (*self.mid, *self.conv_blocks):
            x = block(x, around)
        return convolve(self.conv_out, normed_swish(self.norm_out, x, spent=True), around)


class VQModel(nn.Module):
    """A VQ tokenizer. Pictures are in [-1, 1]; decoded ones may stray slightly outside."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config.codebook_size, config.code_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, kernel_size=1)

    def encode_latents(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] -> latents before quantisation [B, code_dim, h, w].

        Raises InvalidRequestError unless both sides are multiples of the downsample factor.
        """
        side = self.config.downsample
        for name, pixels in (("height", images.shape[-2]), ("width", images.shape[-1])):
            if pixels % side or pixels < side:
                nearest = max(side, round(pixels / side) * side)
                raise InvalidRequestError(
                    f"{name} is {pixels} pixels, but this tokenizer needs a multiple of {side}; the nearest is "
                    f"{nearest}",
                    name,
                )
        return self.quant_conv(self.encoder(images))

    def encode(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] -> codes int64 [B, h, w]."""
        return self.quantize.encode(self.encode_latents(images))

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> quantised latents [B, code_dim, h, w], in the dtype of the decoder."""
        return self.quantize.lookup(codes).to(self.post_quant_conv.weight.dtype)

    def decode_latents(self, latents: Tensor, around: bool = False) -> Tensor:
        """Quantised latents [B, code_dim, h, w] -> pictures [B, 3, H, W]."""
        return self.decoder(self.post_quant_conv(latents), around)

    def decode(self, codes: Tensor, around: bool = False) -> Tensor:
        """Codes [B, h, w] -> pictures [B, 3, H, W], the whole canvas at once (`decode_tiled` bounds the memory).

        around: the right edge meets the left one, so every convolution of the decoder sees across it.
        """
        return self.decode_latents(self.lookup(codes), around)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training: (reconstruction [B, 3, H, W], codebook + commitment loss, codes [B, h, w]).

        Autocast-friendly (the codebook stays float32) and channels_last-friendly; the gradient of the
        reconstruction passes straight through the codebook.
        """
        quantized = self.quantize(self.encode_latents(images))
        return self.decode_latents(quantized.latents), quantized.loss, quantized.codes
