"""Positions of visual tokens in the picture, measured with ramps of grey through the processor.

A processor may resize, crop, pad, tile and flatten. Its rules are not repeated here: the grey of a ramp encodes a position, so the
value of a patch is its position. No family needs special rules.

Shapes: N patches in the order of the pixels, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]  # width, height in pixels
LIST_COLUMNS = 16


@dataclass(frozen=True)
class Sheet:
    """Grid of visual tokens: of the whole picture, an overview or its tiles; or a plain list of tokens.

    Shapes: tokens (rows, columns) indices into the prompt's visual tokens, -1 for none; box (left, top, right, bottom) of the picture's
    pixels that they cover (beyond the picture if the processor pads), None if the tokens have no place in it. ``frames``: the first and the
    last frame of the video that they cover, which differ where a model merges frames; None for pictures. ``image`` is the picture, or the first frame.
    """

    tokens: Tensor
    image: int = 0
    box: tuple[float, float, float, float] | None = None
    frames: tuple[int, int] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return (self.tokens.shape[0], self.tokens.shape[1])

    @property
    def time(self) -> str:
        """The frames in words: "frame 3", "frames 2-3"; "" for pictures."""
        if self.frames is None:
            return ""
        first, last = self.frames
        return f"frame {first}" if first == last else f"frames {first}-{last}"

    def spread(self, values: Tensor) -> Tensor:
        """Return values of the visual tokens on the grid, (..., V) -> (..., rows, columns); 0 for no token."""
        return torch.where(self.tokens >= 0, values[..., self.tokens.clamp_min(0)], 0)

    def find(self, token: int) -> tuple[int, int] | None:
        """Return row and column of a token; None if it is on another grid."""
        places = (self.tokens == token).nonzero()
        return (int(places[0, 0]), int(places[0, 1])) if len(places) else None

    def view(self, images: Sequence[Image.Image]) -> Image.Image | None:
        """Return the part of the picture that the grid covers."""
        if self.box is None:
            return None
        left, top, right, bottom = (round(edge) for edge in self.box)
        return images[self.image].crop((left, top, right, bottom))


@dataclass(frozen=True)
class Places:
    """Positions of patches.

    Shapes: image (N,) index of the picture or of the first frame, -1 for patches of padding only; center (N, 2) and size (N, 2), x and y
    in pixels of that picture; last (N,) index of the last frame, None for pictures.
    """

    image: Tensor
    center: Tensor
    size: Tensor
    last: Tensor | None = None


def measure_places(pixels_of: Callable[[list[Image.Image]], Tensor], sizes: Sequence[Size]) -> Places:
    """Measure the position of each patch in pictures of these sizes.

    Args:
        pixels_of: pictures -> pixels of each patch, (N, values).
        sizes: width and height of the pictures.
    """
    black = [Image.new("RGB", size) for size in sizes]
    dark = pixels_of(black)
    image = torch.full((len(dark),), -1)
    center, extent = torch.zeros(len(dark), 2), torch.zeros(len(dark), 2)
    for index, size in enumerate(sizes):

        def difference(picture: Image.Image, index: int = index) -> Tensor:
            return pixels_of([*black[:index], picture, *black[index + 1 :]]) - dark

        white = difference(Image.new("RGB", size, "white"))
        visible, mine = _visible(white)
        image[mine] = index
        for axis in range(2):
            mean, width = _along(difference(_ramp(size, axis)), white, visible)
            center[mine, axis], extent[mine, axis] = mean[mine] * size[axis], width[mine] * size[axis]
    return Places(image, center, extent)


def measure_frames(pixels_of: Callable[[list[Image.Image]], Tensor], size: Size, count: int) -> Places:
    """Measure the position of each patch in a video of so many frames: in the frame by ramps, in time by the binary digits of frames.

    In the run of a digit, frames whose index has it are white and all others black: the values of a patch are the index of their frame. A
    patch of several frames, as models that merge frames in time cut them, holds values of each.

    Args:
        pixels_of: frames -> pixels of each patch, (N, values).
        size: width and height of a frame.
        count: number of frames.
    """
    black, bright = Image.new("RGB", size), Image.new("RGB", size, "white")
    dark = pixels_of([black] * count)
    white = pixels_of([bright] * count) - dark
    visible, mine = _visible(white)
    frame = torch.zeros(dark.shape, dtype=torch.int32)
    for digit in range((count - 1).bit_length()):
        part = pixels_of([bright if index >> digit & 1 else black for index in range(count)]) - dark
        frame += (part / torch.where(visible, white, 1) > 0.5).int() << digit
    first = torch.where(visible, frame, count).amin(1).long()
    last = torch.where(visible, frame, -1).amax(1).long()
    along = [_along(pixels_of([_ramp(size, axis)] * count) - dark, white, visible) for axis in range(2)]
    center, extent = (torch.stack(each, 1) * torch.tensor(size) for each in zip(*along, strict=True))
    nowhere = torch.full_like(first, -1)
    return Places(torch.where(mine, first, nowhere), center, extent, torch.where(mine, last, nowhere))


def lay_out(
    token_of_patch: Tensor, places: Places, crop_of_patch: Tensor, sizes: Sequence[Size], count: int
) -> tuple[Sheet, ...]:
    """Return the grids of tokens by their positions in the picture; crops with cells of one size form one grid.

    Args:
        token_of_patch: (N,) indices below ``count``, negative for none.
        places: positions of the patches.
        crop_of_patch: (N,) number of the crop.
        sizes: width and height of the pictures.
        count: number of visual tokens.
    """
    groups: list[tuple[int, Tensor, list[Tensor]]] = []  # picture, size of a cell, tokens
    center, image, last = _of_tokens(token_of_patch, places, count)
    for crop in crop_of_patch.unique():
        patches = (crop_of_patch == crop) & (token_of_patch >= 0) & (places.image >= 0)
        tokens = token_of_patch[patches].unique()
        tokens = tokens[image[tokens] >= 0]
        if not len(tokens):
            continue
        cell = _cell(center[tokens], places.center[patches & (token_of_patch == tokens[0])], places.size[patches])
        picture = int(image[tokens[0]])
        for other, size, members in groups:
            if other == picture and bool(((cell / size).log().abs() < 0.15).all()):
                members.append(tokens)
                break
        else:
            groups.append((picture, cell, [tokens]))
    sheets = [_sheet(picture, sizes[picture], cell, torch.cat(members), center) for picture, cell, members in groups]
    if places.last is None:
        return tuple(sheet for sheet in sheets if sheet is not None)
    spans = [(picture, int(last[torch.cat(members)].max())) for picture, _, members in groups]
    return tuple(replace(sheet, frames=span) for sheet, span in zip(sheets, spans, strict=True) if sheet is not None)


def list_sheet(count: int) -> Sheet:
    """Return a grid of tokens without a place in the picture, in rows of 16."""
    rows = -(-count // LIST_COLUMNS)
    numbers = torch.arange(rows * LIST_COLUMNS)
    columns = min(count, LIST_COLUMNS)
    return Sheet(torch.where(numbers < count, numbers, -1).view(rows, LIST_COLUMNS)[:, :columns])


def by_time(sheets: Sequence[Sheet]) -> dict[tuple[int, int], Tensor]:
    """Return the visual tokens of each span of frames, by the first and the last frame, in order; {} for pictures."""
    spans = sorted({sheet.frames for sheet in sheets if sheet.frames is not None})
    grids = {span: [sheet.tokens.flatten() for sheet in sheets if sheet.frames == span] for span in spans}
    return {span: (tokens := torch.cat(parts))[tokens >= 0] for span, parts in grids.items()}


def _ramp(size: Size, axis: int) -> Image.Image:
    width, height = size
    line = (np.arange(size[axis]) + 0.5) / size[axis] * 255
    grey = np.broadcast_to(line if axis == 0 else line[:, None], (height, width))
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def _visible(white: Tensor) -> tuple[Tensor, Tensor]:
    """Return where patches change when the picture turns white, (N, values), and the patches that belong to it, (N,)."""
    visible = white.abs() > 0.5 * white.abs().max()
    return visible, visible.float().mean(1) > 0.25


def _along(ramp: Tensor, white: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Return centre and extent of patches along the axis of a ramp, (N,) each, as shares of the picture."""
    count = visible.sum(1).clamp_min(1)
    share = torch.where(visible, ramp / torch.where(visible, white, 1), 0)
    mean = share.sum(1) / count
    spread = (torch.where(visible, share - mean[:, None], 0).square().sum(1) / count).sqrt()
    return mean, spread * 12**0.5  # a uniform distribution of width w has the standard deviation w / sqrt(12)


def _of_tokens(token_of_patch: Tensor, places: Places, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the centre of each token over its patches in the picture, (V, 2), the picture and its last frame, (V,), -1 for none."""
    used = (token_of_patch >= 0) & (places.image >= 0)
    token = token_of_patch[used]
    number = torch.zeros(count).index_add(0, token, torch.ones(len(token)))
    center = torch.zeros(count, 2).index_add(0, token, places.center[used]) / number.clamp_min(1)[:, None]
    image = torch.full((count,), -1)
    image[token] = places.image[used]
    last = image.clone()
    if places.last is not None:
        last[token] = places.last[used]
    return center, image, last


def _cell(center: Tensor, of_one: Tensor, patch_size: Tensor) -> Tensor:
    """Return width and height of a token's cell: the median step between tokens, or the extent of one token's patches."""
    patch = patch_size.median(0).values.clamp_min(1e-6)
    cell = of_one.amax(0) - of_one.amin(0) + patch
    for axis in range(2):
        steps = center[:, axis].sort().values.diff()
        steps = steps[steps > 0.5 * cell[axis]]
        if len(steps):
            cell[axis] = steps.median()
    return cell


def _sheet(image: int, size: Size, cell: Tensor, tokens: Tensor, center: Tensor) -> Sheet | None:
    columns, left, right = _lines(center[tokens, 0], float(cell[0]))
    rows, top, bottom = _lines(center[tokens, 1], float(cell[1]))
    table = torch.full((int(rows.max()) + 1, int(columns.max()) + 1), -1)
    table[rows, columns] = tokens
    if (table >= 0).sum() != len(tokens):  # two tokens at one place: the picture is too small to separate them
        return None
    width, height = size
    return Sheet(
        table,
        image,
        (
            _snapped(left, cell[0], width),
            _snapped(top, cell[1], height),
            _snapped(right, cell[0], width),
            _snapped(bottom, cell[1], height),
        ),
    )


def _snapped(edge: float, cell: Tensor, end: int) -> float:
    """Return the edge of the picture if a measured edge is within a tenth of a cell of it, else the measured one."""
    return next((float(border) for border in (0, end) if abs(edge - border) < 0.1 * float(cell)), edge)


def _lines(at: Tensor, cell: float) -> tuple[Tensor, float, float]:
    """Return the line of each coordinate, and the outer edges of the first and the last line."""
    order = at.argsort()
    number = torch.zeros(len(at), dtype=torch.long)
    number[order[1:]] = (at[order].diff() > 0.5 * cell).long().cumsum(0)
    middle = torch.stack([at[number == line].mean() for line in range(int(number.max()) + 1)])
    step = float(middle[-1] - middle[0]) / (len(middle) - 1) if len(middle) > 1 else cell
    return number, float(middle[0]) - step / 2, float(middle[-1]) + step / 2
