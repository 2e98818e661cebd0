"""The folder of an endless panorama: tiles, a preview of all of them, and what is needed to go on.

    tile-00000.png, tile-00001.png ...   the picture, piece by piece
    preview.png                          all tiles in one picture, made smaller as it gets longer
    endless.json                         the request, how far it has come, and the last codes

Every file is written whole or not at all, and endless.json last, so the folder can be used whenever the work stops.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from panoserve.cli_files import write_atomically
from panoserve.cli_record import DrawRecord
from panoserve.errors import InvalidRequestError

if TYPE_CHECKING:
    import torch

    from panoserve.vq.model import VQModel

STATE = "endless.json"
PREVIEW_PIXELS = 8192  # its length at most; memory does not depend on the panorama's


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What endless.json holds. The record's width (or height) is that of the tiles together."""

    record: DrawRecord
    direction: str
    crops: int  # of a segment
    tiles: int  # that are complete; the one behind them ends where the drawing stopped
    begin: int  # first column (row) of `codes` on the canvas
    codes: torch.Tensor  # int64 [H, n] or [n, W]: the end of the canvas

    def end(self, axis: int) -> int:
        """First column (row) that is not drawn yet."""
        return self.begin + int(self.codes.shape[axis])

    def to_json(self) -> str:
        values = {name: getattr(self, name) for name in ("direction", "crops", "tiles", "begin")}
        return json.dumps({"request": asdict(self.record), **values, "codes": self.codes.tolist()}) + "\n"


def read_state(folder: Path) -> State:
    """Read endless.json. Raises InvalidRequestError if it is not there or not what `to_json` writes."""
    import torch

    path = folder / STATE
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record = DrawRecord(**values.pop("request"))
        codes = torch.tensor(values.pop("codes"), dtype=torch.long)
        state = State(record=record, codes=codes, **values)
        if codes.dim() != 2 or not all(isinstance(n, int) and n >= 0 for n in (state.begin, state.crops, state.tiles)):
            raise ValueError("its codes or counts are none")
    except FileNotFoundError:
        raise InvalidRequestError(f"{folder} holds no {STATE}, so there is nothing to go on from") from None
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidRequestError(f"{path} cannot be read: {error}; expected what panoserve endless writes") from None
    return state


class EndlessFolder:
    """Writes the files. `axis` 1 puts tiles side by side, 0 one below another."""

    def __init__(self, path: Path, axis: int) -> None:
        self.path = path
        self.axis = axis
        self.tiles = 0
        self.pixels = 0  # of all tiles together
        self._scale = 1  # how much smaller the preview is
        self._preview: list[Image.Image] = []

    def take_up(self, tiles: int) -> None:
        """Count the first `tiles` tiles that are there, and put them into the preview."""
        for index in range(tiles):
            path = self._tile(index)
            try:
                with Image.open(path) as tile:
                    self._count(tile.convert("RGB"))
            except OSError as error:
                raise InvalidRequestError(f"tile {path} cannot be read: {error}; it is needed to go on") from None

    def add(self, tile: Image.Image) -> None:
        _write_png(tile, self._tile(self.tiles))
        self._count(tile)

    def save(self, state: State) -> None:
        """Bring preview and state up to the tiles written."""
        self.save_preview()
        content = state.to_json().encode()
        write_atomically(self.path / STATE, lambda file: file.write(content))

    @property
    def can_go_on(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.path / STATE).is_file()

    def remove_stale(self) -> None:
        """Remove tiles behind the last one: a run before this one may have ended with more, for the time being."""
        index = self.tiles
        while (path := self._tile(index)).is_file():
            path.unlink()
            index += 1

    def save_preview(self) -> None:
        if self._preview:
            _write_png(self._joined(), self.path / "preview.png")

    def _tile(self, index: int) -> Path:
        return self.path / f"tile-{index:05d}.png"

    def _count(self, tile: Image.Image) -> None:
        self.tiles += 1
        self.pixels += tile.size[1 - self.axis]
        self._preview.append(tile.reduce(self._scale))
        while sum(part.size[1 - self.axis] for part in self._preview) > PREVIEW_PIXELS:
            self._scale *= 2
            self._preview = [self._joined().reduce(2)]

    def _joined(self) -> Image.Image:
        """The preview as one picture, which takes the place of its parts."""
        lengths = [part.size[1 - self.axis] for part in self._preview]
        across = self._preview[0].size[self.axis]
        joined = Image.new("RGB", (sum(lengths), across) if self.axis else (across, sum(lengths)))
        for index, part in enumerate(self._preview):
            at = sum(lengths[:index])
            joined.paste(part, (at, 0) if self.axis else (0, at))
        self._preview = [joined]
        return joined


class TileWriter:
    """Decodes the codes of an endless canvas and writes its tiles, up to a limit in pixels."""

    def __init__(self, model: VQModel, side: int, files: EndlessFolder, limit: int | None) -> None:
        from panoserve.vq.endless import EndlessDecoder

        self.files, self.limit = files, limit
        self.scale = model.config.downsample
        self.decoder = EndlessDecoder(model, side, files.axis, first=files.tiles)
        self._complete = files.tiles
        self._beyond: torch.Tensor | None = None  # drawn, but behind the limit

    def take(self, codes: torch.Tensor) -> None:
        """Write the tiles that these codes complete."""
        import torch

        axis = self.files.axis
        codes = codes if self._beyond is None else torch.cat([self._beyond, codes], dim=axis)
        room = codes.shape[axis]
        if self.limit is not None:
            room = min(room, -(-self.limit // self.scale) - self.decoder.end)
        for tile in self.decoder.push(codes.narrow(axis, 0, room)):
            self._add(tile)
        self._complete = self.files.tiles
        self._beyond = codes.narrow(axis, room, codes.shape[axis] - room)

    def finish(self) -> None:
        """Write what is left: tiles that would be different if more were drawn, so they do not count as complete."""
        rest = self.decoder.finish()
        if rest is not None:
            for tile in rest.split(self.decoder.tile * self.scale, dim=self.files.axis + 1):
                self._add(tile)

    def state(self) -> tuple[int, int, torch.Tensor]:
        """Tiles that are complete, and the codes needed to go on: where they begin, and themselves."""
        import torch

        assert self.decoder.codes is not None and self._beyond is not None, "nothing was taken yet"
        codes = torch.cat([self.decoder.codes, self._beyond], dim=self.files.axis)
        return self._complete, self.decoder.begin, codes

    def _add(self, pixels: torch.Tensor) -> None:
        """Write pixels [3, H, W] as a tile, cut where the limit is."""
        from panoserve.vq.images import to_pil

        dim = self.files.axis + 1
        room = pixels.shape[dim] if self.limit is None else self.limit - self.files.pixels
        self.files.add(to_pil(pixels.narrow(dim, 0, min(room, pixels.shape[dim]))))


def _write_png(picture: Image.Image, path: Path) -> None:
    from panoserve.vq.images import PNG_LEVEL

    write_atomically(path, lambda file: picture.save(file, format="PNG", compress_level=PNG_LEVEL))
