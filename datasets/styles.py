"""Styles: integer filters that shift a clean picture away from the pictures that the built-in CLIP was pretrained on.

Every filter maps a picture (SIDE, SIDE, 3), int32 in [0, 255], and the picture's random stream to another such array;
the caller clips values outside that range. Strengths are integers, set by the datasets that use the filters.
"""
import numpy as np

from p2c.datasets.drawing import SIDE, SINE, TURN, RandomStream

COORDINATE = np.arange(SIDE, dtype=np.int32)
SCREEN = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.int32)  # Bayer matrix


def box_blur(picture: np.ndarray, radius: int) -> np.ndarray:
    """Average over square windows of side 2 * radius + 1; pixels of the border are repeated outwards."""
    width = 2 * radius + 1
    for axis in (0, 1):
        pad = [(radius + 1, radius) if k == axis else (0, 0) for k in range(picture.ndim)]
        sums = np.cumsum(np.pad(picture, pad, mode="edge"), axis=axis, dtype=np.int32)
        ends, starts = np.arange(width, width + SIDE), np.arange(SIDE)
        picture = (sums.take(ends, axis) - sums.take(starts, axis) + width // 2) // width
    return picture


def contrast(picture: np.ndarray, level: int) -> np.ndarray:
    """Scale the distance of values from 128 by level/256."""
    return 128 + (((picture - 128) * level) >> 8)


def grain(picture: np.ndarray, rng: RandomStream, amount: int) -> np.ndarray:
    """Add independent noise with a triangular distribution on [-amount, amount] to every value."""
    noise = rng.octets(SIDE, SIDE, 3) + rng.octets(SIDE, SIDE, 3) - 255
    return picture + ((noise * amount) >> 8)


def clouds(rng: RandomStream, cells: int) -> np.ndarray:
    """Draw smooth colour noise (SIDE, SIDE, 3) in [-128, 127] from a grid of `cells` x `cells` (a divisor of SIDE)."""
    block = SIDE // cells
    coarse = rng.octets(cells, cells, 3) - 128
    return box_blur(coarse.repeat(block, 0).repeat(block, 1), block // 2)


def dark(picture: np.ndarray, rng: RandomStream, level: int, amount: int) -> np.ndarray:
    """Darken as at night: level/256 of the light at a random spot, half of that far from it, and grain."""
    x, y = rng.below(SIDE), rng.below(SIDE)
    distance = (COORDINATE - x) ** 2 + (COORDINATE[:, None] - y) ** 2
    light = level - level * np.minimum(distance, SIDE * SIDE) // (2 * SIDE * SIDE)
    return grain((picture * light[:, :, None]) >> 8, rng, amount)


def blur(picture: np.ndarray, rng: RandomStream, radius: int, level: int) -> np.ndarray:
    """Blur as if out of focus: two box blurs, and less contrast."""
    return contrast(box_blur(box_blur(picture, radius), radius), level)


def texture(picture: np.ndarray, rng: RandomStream, coarse: int, fine: int) -> np.ndarray:
    """Add clouds of colour of two sizes."""
    return picture + ((clouds(rng, 8) * coarse + clouds(rng, 32) * fine) >> 7)


def sketch(picture: np.ndarray, rng: RandomStream, ink: int, wash: int, amount: int) -> np.ndarray:
    """Redraw in pencil: edges (largest minus smallest neighbour) as dark strokes, over wash/256 of the colours."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    views = [padded[i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3)]
    edges = (np.maximum.reduce(views) - np.minimum.reduce(views)).max(axis=2, keepdims=True)
    paper = 250 - (((255 - picture) * wash) >> 8)
    return grain(paper - ((edges * ink) >> 8), rng, amount)


def mosaic(picture: np.ndarray, rng: RandomStream, block: int, level: int, amount: int) -> np.ndarray:
    """Replace by faded tiles of `block` pixels, each slightly off in colour; the grid's origin is random."""
    dx, dy = rng.below(block), rng.below(block)
    tiles = SIDE // block + 2
    padded = np.pad(picture, ((dy, tiles * block - SIDE - dy), (dx, tiles * block - SIDE - dx), (0, 0)), mode="edge")
    means = padded.reshape(tiles, block, tiles, block, 3).sum((1, 3), dtype=np.int32) // (block * block)
    means = contrast(means, level) + (((rng.octets(tiles, tiles, 3) - 128) * amount) >> 7)
    return means.repeat(block, 0).repeat(block, 1)[dy : dy + SIDE, dx : dx + SIDE]


def relief(picture: np.ndarray, rng: RandomStream, depth: int, wash: int) -> np.ndarray:
    """Emboss in gray: light minus shade along a diagonal, with wash/256 of the picture's own colours."""
    gray = picture.sum(axis=2, dtype=np.int32) // 3
    padded = np.pad(gray, 1, mode="edge")
    slope = padded[:-2, :-2] - padded[2:, 2:] + padded[1:-1, :-2] - padded[1:-1, 2:]
    return 128 + ((slope * depth) >> 8)[:, :, None] + (((picture - 128) * wash) >> 8)


def wave(picture: np.ndarray, rng: RandomStream, swing: int, level: int, amount: int) -> np.ndarray:
    """Shift rows and columns by up to `swing` pixels, as if under water; fade, and add clouds of colour."""
    for axis in (0, 1):
        period, start = rng.between(10, 20), rng.below(TURN)
        turns = [(start + TURN * k // period) % TURN for k in range(SIDE)]
        shift = np.array([(swing * SINE[turn] + 2048) >> 12 for turn in turns], np.int32)
        along = np.clip(COORDINATE[None] + shift[:, None], 0, SIDE - 1)  # a row of indices for each row or column
        picture = picture[COORDINATE[:, None], along] if axis == 0 else picture[along.T, COORDINATE[None]]
    return contrast(picture, level) + ((clouds(rng, 8) * amount) >> 7)


def newsprint(picture: np.ndarray, rng: RandomStream, screen: int, wash: int) -> np.ndarray:
    """Print in gray over a 4x4 screen of depth screen/256, with wash/256 of the picture's own colours."""
    gray = (picture.sum(axis=2, keepdims=True, dtype=np.int32) * (256 - wash) // 3 + picture * wash) >> 8
    pattern = np.tile(SCREEN, (SIDE // 4, SIDE // 4))[:, :, None]
    return gray + (((16 * pattern - 120) * screen) >> 8)


def scratched(picture: np.ndarray, rng: RandomStream, scratches: int, thickness: int, level: int) -> np.ndarray:
    """Draw straight gray scratches across the faded picture; `thickness` is in eighths of a pixel."""
    picture = contrast(picture, level)
    for _ in range(scratches):
        turn, offset, tone = rng.below(TURN), rng.between(-2 * SIDE, 2 * SIDE), rng.below(256)
        x, y = 8 * (COORDINATE - SIDE // 2), 8 * (COORDINATE[:, None] - SIDE // 2)
        distance = ((SINE[(turn + TURN // 4) % TURN] * x + SINE[turn] * y) >> 12) - offset
        picture = np.where((np.abs(distance) < thickness)[:, :, None], tone, picture)
    return picture
