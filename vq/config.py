"""The shape of a VQ tokenizer, and its `config.json` (facts.md 2.1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from panoserve.errors import ModelFolderError


@dataclass(frozen=True, slots=True)
class VQConfig:
    """Everything needed to build one VQ tokenizer. The defaults are VQ-16."""

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # finest level first; one halving between neighbours
    num_res_blocks: int = 2  # per encoder level; a decoder level has one more
    z_channels: int = 256
    codebook_size: int = 16384
    code_dim: int = 8
    norm_groups: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        for field in fields(self):
            values = getattr(self, field.name)
            for value in values if isinstance(values, tuple) else (values,):
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ModelFolderError(f"VQ config: {field.name} must hold positive whole numbers, got {values!r}")
        if not self.channel_multipliers:
            raise ModelFolderError("VQ config: channel_multipliers must name at least one level")
        for width in self.widths:
            if width % self.norm_groups:
                raise ModelFolderError(
                    f"VQ config: a level is {width} channels wide, which norm_groups {self.norm_groups} does not divide"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, finest first."""
        return tuple(self.channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def downsample(self) -> int:
        """Width and height in pixels of the square that one code covers."""
        return int(2 ** (len(self.channel_multipliers) - 1))

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        return {**asdict(self), "channel_multipliers": list(self.channel_multipliers)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VQConfig:
        """Read the content of a config.json. Raises ModelFolderError naming unknown or missing keys."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            unknown, missing = sorted(set(values) - names), sorted(names - set(values))
            raise ModelFolderError(
                f"VQ config: unknown keys {unknown}, missing keys {missing}; expected {sorted(names)}"
            )
        return cls(**values)


VQ_16 = VQConfig()
VQ_8 = VQConfig(channel_multipliers=(1, 2, 2, 4))
