"""Styles: integer filters that redraw a clean picture so that a model pretrained on clean ones finds it foreign.

Every filter maps a picture (SIDE, SIDE, 3), int32 in [0, 255], and the picture's dice to another such array; values it
leaves outside that range are clipped by the caller. The strengths are whole numbers and keyword arguments, set by the
data sets that use them.
"""

import numpy as np

from p2c.datasets.drawing import SIDE, SINE, TURN, Dice

PLACE = np.arange(SIDE, dtype=np.int32)
SCREEN = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.int32)  # Bayer's thresholds


def box_blur(picture: np.ndarray, radius: int) -> np.ndarray:
    """Mean over windows of 2 * radius + 1 pixels squared, the border repeated outwards."""
    width = 2 * radius + 1
    for axis in (0, 1):
        pad = [(radius + 1, radius) if k == axis else (0, 0) for k in range(picture.ndim)]
        sums = np.cumsum(np.pad(picture, pad, mode="edge"), axis=axis, dtype=np.int32)
        ends, starts = np.arange(width, width + SIDE), np.arange(SIDE)
        picture = (sums.take(ends, axis) - sums.take(starts, axis) + width // 2) // width
    return picture


def contrast(picture: np.ndarray, level: int, middle: int = 128) -> np.ndarray:
    """Draw values towards `middle`; `level` in 1/256."""
    return middle + (((picture - middle) * level) >> 8)


def grain(picture: np.ndarray, dice: Dice, amount: int) -> np.ndarray:
    """Add independent noise to every value, triangular in [-amount, amount]."""
    noise = dice.octets(SIDE, SIDE, 3) + dice.octets(SIDE, SIDE, 3) - 255
    return picture + ((noise * amount) >> 8)


def clouds(dice: Dice, cells: int) -> np.ndarray:
    """Smooth colour noise (SIDE, SIDE, 3) in [-128, 127] with `cells` bumps to a side (a divisor of SIDE)."""
    block = SIDE // cells
    coarse = dice.octets(cells, cells, 3) - 128
    return box_blur(coarse.repeat(block, 0).repeat(block, 1), block // 2)


def dark(picture: np.ndarray, dice: Dice, level: int, amount: int) -> np.ndarray:
    """A night shot: `level`/256 of the light around a random spot, half of that far from it, and grain."""
    x, y = dice.below(SIDE), dice.below(SIDE)
    distance = (PLACE - x) ** 2 + (PLACE[:, None] - y) ** 2
    light = level - level * np.minimum(distance, SIDE * SIDE) // (2 * SIDE * SIDE)
    return grain((picture * light[:, :, None]) >> 8, dice, amount)


def blur(picture: np.ndarray, dice: Dice, radius: int, level: int) -> np.ndarray:
    """Out of focus: two box blurs, and less contrast."""
    return contrast(box_blur(box_blur(picture, radius), radius), level)


def noise(picture: np.ndarray, dice: Dice, amount: int) -> np.ndarray:
    return grain(picture, dice, amount)


def texture(picture: np.ndarray, dice: Dice, coarse: int, fine: int) -> np.ndarray:
    """Coloured clouds of two sizes over everything."""
    return picture + ((clouds(dice, 8) * coarse + clouds(dice, 32) * fine) >> 7)


def sketch(picture: np.ndarray, dice: Dice, ink: int, wash: int, amount: int) -> np.ndarray:
    """Pencil on paper: edges (largest less smallest neighbour) in dark strokes, the colours a thin wash."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    views = [padded[i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3)]
    edges = (np.maximum.reduce(views) - np.minimum.reduce(views)).max(axis=2, keepdims=True)
    paper = 250 - (((255 - picture) * wash) >> 8)
    return grain(paper - ((edges * ink) >> 8), dice, amount)


def mosaic(picture: np.ndarray, dice: Dice, block: int, level: int, amount: int) -> np.ndarray:
    """Tiles of `block` pixels (the grid begins anywhere), faded, each a little off in colour."""
    dx, dy = dice.below(block), dice.below(block)
    tiles = SIDE // block + 2
    padded = np.pad(picture, ((dy, tiles * block - SIDE - dy), (dx, tiles * block - SIDE - dx), (0, 0)), mode="edge")
    means = padded.reshape(tiles, block, tiles, block, 3).sum((1, 3), dtype=np.int32) // (block * block)
    means = contrast(means, level) + (((dice.octets(tiles, tiles, 3) - 128) * amount) >> 7)
    return means.repeat(block, 0).repeat(block, 1)[dy : dy + SIDE, dx : dx + SIDE]


def relief(picture: np.ndarray, dice: Dice, depth: int, wash: int) -> np.ndarray:
    """Pressed into gray metal: light minus shade along a diagonal, with `wash`/256 of the picture's own colours."""
    gray = picture.sum(axis=2, dtype=np.int32) // 3
    padded = np.pad(gray, 1, mode="edge")
    slope = padded[:-2, :-2] - padded[2:, 2:] + padded[1:-1, :-2] - padded[1:-1, 2:]
    return 128 + ((slope * depth) >> 8)[:, :, None] + (((picture - 128) * wash) >> 8)


def wave(picture: np.ndarray, dice: Dice, swing: int, level: int, amount: int) -> np.ndarray:
    """Seen through moving water: rows and columns swing by `swing` pixels; faded; clouds of colour."""
    for axis in (0, 1):
        period, start = dice.between(10, 20), dice.below(TURN)
        turns = [(start + TURN * k // period) % TURN for k in range(SIDE)]
        shift = np.array([(swing * SINE[turn] + 2048) >> 12 for turn in turns], np.int32)
        along = np.clip(PLACE[None] + shift[:, None], 0, SIDE - 1)  # one row of indices for each row or column
        picture = picture[PLACE[:, None], along] if axis == 0 else picture[along.T, PLACE[None]]
    return contrast(picture, level) + ((clouds(dice, 8) * amount) >> 7)


def newsprint(picture: np.ndarray, dice: Dice, screen: int, wash: int) -> np.ndarray:
    """Printed in gray over a 4x4 screen of `screen`/256 depth, with `wash`/256 of the picture's own colours."""
    gray = (picture.sum(axis=2, keepdims=True, dtype=np.int32) * (256 - wash) // 3 + picture * wash) >> 8
    pattern = np.tile(SCREEN, (SIDE // 4, SIDE // 4))[:, :, None]
    return gray + (((16 * pattern - 120) * screen) >> 8)


def scratched(picture: np.ndarray, dice: Dice, scratches: int, thickness: int, level: int) -> np.ndarray:
    """Straight gray scratches across a faded picture; `thickness` in eighths of a pixel."""
    picture = contrast(picture, level)
    for _ in range(scratches):
        turn, offset, tone = dice.below(TURN), dice.between(-2 * SIDE, 2 * SIDE), dice.below(256)
        x, y = 8 * (PLACE - SIDE // 2), 8 * (PLACE[:, None] - SIDE // 2)
        distance = ((SINE[(turn + TURN // 4) % TURN] * x + SINE[turn] * y) >> 12) - offset
        picture = np.where((np.abs(distance) < thickness)[:, :, None], tone, picture)
    return picture
