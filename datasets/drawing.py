"""Pictures of shapes, drawn with integer arithmetic only, so that a seed gives the same pixels on every machine.

A picture is specified in words ("red striped star", "three dotted hearts", "star above a ring"); whatever the words
leave open (position, angle, size, background, ...) is drawn from a stream of random integers. No pixel depends on a
floating-point number: directions come from a fixed-point table, and edges are smoothed by averaging 2x2 samples.

Units: pictures are SIDE x SIDE pixels; positions and radii are in eighths of a pixel. In a shape's own coordinates
(u to the right, v down) its radius is UNIT. A shape's field is positive inside and roughly the distance to the edge.
"""
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

SIDE = 64
UNIT = 1024
TURN = 256  # directions in a full turn
SINE = [round(4096 * math.sin(2 * math.pi * k / TURN)) for k in range(TURN)]
EDGE = 190  # thickness of a hollow shape's edge
Field = np.ndarray
T = TypeVar("T")

COLORS = {
    "red": (215, 40, 40), "orange": (245, 140, 25), "yellow": (240, 215, 40), "green": (45, 165, 70),
    "blue": (45, 90, 215), "purple": (130, 50, 175), "pink": (245, 120, 190), "black": (25, 25, 30),
}
BACKGROUNDS = {"white": (240, 240, 240), "gray": (165, 165, 165), "tan": (210, 180, 140), "mint": (170, 225, 195)}
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4}
CENTER = 4 * SIDE
GROUP_RADIUS = (72, 104)
SIZES = {"tiny": (44, 60), None: (76, 180), "big": (208, 240)}  # radius of a single shape
RELATIONS = ("above", "beside")


class RandomStream:
    """A stream of random integers that depends on a name alone.

    The name's SHA-256 seeds PCG64, whose raw output numpy guarantees not to change.
    """

    def __init__(self, name: str) -> None:
        self._bits = np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little"))
        self._ready: list[int] = []

    def below(self, n: int) -> int:
        """Draw an integer in [0, n), for n far below 2**32."""
        if not self._ready:
            self._ready = (self._bits.random_raw(64) >> np.uint64(32)).tolist()
        return (self._ready.pop() * n) >> 32

    def between(self, low: int, high: int) -> int:
        """Draw an integer in [low, high]."""
        return low + self.below(high - low + 1)

    def pick(self, choices: Sequence[T]) -> T:
        """Draw one of `choices`."""
        return choices[self.below(len(choices))]

    def chance(self, percent: int) -> bool:
        """Return True with a probability given in percent."""
        return self.below(100) < percent

    def sample(self, choices: Sequence[T], k: int) -> list[T]:
        """Draw `k` different members of `choices`, in random order."""
        rest = list(choices)
        return [rest.pop(self.below(len(rest))) for _ in range(k)]

    def octets(self, *shape: int) -> np.ndarray:
        """Draw an int32 array of integers in [0, 256)."""
        size = math.prod(shape)
        raw = self._bits.random_raw((size + 7) // 8)
        planes = [(raw >> np.uint64(8 * k)) & np.uint64(255) for k in range(8)]
        return np.concatenate(planes)[:size].astype(np.int32).reshape(shape)


def _disc(u: Field, v: Field, radius: int) -> Field:
    return (radius * radius - u * u - v * v) // (2 * radius)


def _half_planes(u: Field, v: Field, first: int, count: int, distance: int) -> list[Field]:
    """Return the fields of `count` half-planes at `distance` from the centre.

    Their normals divide a full turn evenly, starting at the direction `first`.
    """
    turns = [first + round(k * TURN / count) for k in range(count)]
    return [distance - ((SINE[(t + TURN // 4) % TURN] * u + SINE[t % TURN] * v) >> 12) for t in turns]


def circle(u: Field, v: Field) -> Field:
    return _disc(u, v, 900)


def square(u: Field, v: Field) -> Field:
    return 780 - np.maximum(np.abs(u), np.abs(v))


def triangle(u: Field, v: Field) -> Field:
    a, b, c = _half_planes(u, v, TURN // 4, 3, 500)
    return np.minimum(np.minimum(a, b), c)


def star(u: Field, v: Field) -> Field:
    """Return the field of a pentagram: a point is inside if it is on the inner side of at least four of five lines."""
    first, other, *rest = _half_planes(u, v, -TURN // 4, 5, 309)
    lowest, second = np.minimum(first, other), np.maximum(first, other)  # of the planes so far
    for plane in rest:
        second = np.minimum(second, np.maximum(lowest, plane))
        lowest = np.minimum(lowest, plane)
    return second


def cross(u: Field, v: Field) -> Field:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(300 - u, 950 - v), np.minimum(950 - u, 300 - v))


def ring(u: Field, v: Field) -> Field:
    return np.minimum(_disc(u, v, 950), -_disc(u, v, 480))


def heart(u: Field, v: Field) -> Field:
    u = np.abs(u)
    tip = ((860 - u - np.abs(v - 60)) * 181) >> 8
    return np.maximum(tip, _disc(u - 430, v + 370, 608))


def diamond(u: Field, v: Field) -> Field:
    return (580 * 1000 - 1000 * np.abs(u) - 580 * np.abs(v)) // 1156


def crescent(u: Field, v: Field) -> Field:
    return np.minimum(_disc(u, v, 900), -_disc(u - 420, v, 760))


def arrow(u: Field, v: Field) -> Field:
    u = np.abs(u)
    head = np.minimum((980 * 800 - 980 * u + 800 * v) // 1265, -v)
    shaft = np.minimum(np.minimum(230 - u, 950 - v), v + 300)
    return np.maximum(head, shaft)


SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    f.__name__: f for f in (circle, square, triangle, star, cross, ring, heart, diamond, crescent, arrow)
}
PLURALS = {"crosses" if name == "cross" else f"{name}s": name for name in SHAPES}


def solid(u: Field, v: Field) -> Field:
    return np.ones(u.shape, bool)


def striped(u: Field, v: Field) -> Field:
    return (u & 511) < 256


def dotted(u: Field, v: Field) -> Field:
    u, v = (u & 511) - 256, (v & 511) - 256
    return u * u + v * v > 150 * 150


def checkered(u: Field, v: Field) -> Field:
    return ((u ^ v) & 512) == 0


# Masks of where a fill shows the colour; the rest of the shape is pale. The inside of a hollow shape is not painted.
FILLS: dict[str, Callable[[Field, Field], Field] | None] = {
    "solid": solid, "hollow": None, "striped": striped, "dotted": dotted, "checkered": checkered,
}


class PlacedShape(NamedTuple):
    """One shape in a picture: its name, fill, colour (red, green, blue) and geometry."""

    shape: str
    fill: str
    rgb: tuple[int, int, int]
    x: int
    y: int
    radius: int
    angle: int = 0
    phase: int = 0


def _coverage(mask: np.ndarray) -> np.ndarray:
    """Count the samples (2h, 2w) inside each pixel: (h, w, 1), from 0 to 4."""
    m = mask.view(np.uint8)
    return (m[::2, ::2] + m[1::2, ::2] + m[::2, 1::2] + m[1::2, 1::2]).astype(np.int32)[:, :, None]


def paint(picture: np.ndarray, item: PlacedShape) -> None:
    """Draw a shape on a picture (SIDE, SIDE, 3), int32, in place."""
    reach = item.radius + item.radius // 8 + 8
    left, right = max(0, (item.x - reach) // 8), min(SIDE, (item.x + reach) // 8 + 1)
    top, bottom = max(0, (item.y - reach) // 8), min(SIDE, (item.y + reach) // 8 + 1)
    if left >= right or top >= bottom:
        return
    dx = np.arange(8 * left + 2, 8 * right, 4, dtype=np.int32) - item.x
    dy = (np.arange(8 * top + 2, 8 * bottom, 4, dtype=np.int32) - item.y)[:, None]
    sine, cosine = SINE[item.angle % TURN], SINE[(item.angle + TURN // 4) % TURN]
    u = (cosine * dx + sine * dy) // (4 * item.radius)  # the table's scale of 4096, divided by 4, is UNIT
    v = (cosine * dy - sine * dx) // (4 * item.radius)
    field = SHAPES[item.shape](u, v)
    inside = field > 0
    fill = FILLS[item.fill]
    patch = picture[top:bottom, left:right]
    rgb = np.array(item.rgb, np.int32)
    if fill is None:
        colored = _coverage(inside & (field < EDGE))
        patch[:] = (patch * (4 - colored) + rgb * colored + 2) >> 2
    else:
        everywhere = _coverage(inside)
        colored = _coverage(inside & fill(u + item.phase, v + item.phase))
        pale = (rgb + 3 * 255) >> 2
        patch[:] = (patch * (4 - everywhere) + pale * (everywhere - colored) + rgb * colored + 2) >> 2


def background(rng: RandomStream, tone: str) -> np.ndarray:
    """Draw an empty picture (SIDE, SIDE, 3), int32, flat or slightly shaded, in about the tone's colour."""
    base = np.array([c + rng.between(-8, 8) for c in BACKGROUNDS[tone]], np.int32)
    if rng.chance(50):
        return np.broadcast_to(base, (SIDE, SIDE, 3)).copy()
    slope_x, slope_y = rng.between(-40, 40), rng.between(-40, 40)
    place = np.arange(SIDE, dtype=np.int32) - SIDE // 2
    shade = (slope_x * place + slope_y * place[:, None]) // SIDE
    return base + shade[:, :, None]


@dataclass(frozen=True)
class PictureSpec:
    """The required content of a picture; None leaves an attribute open.

    `tone` names the background. `relation` and `second` make it a pair of shapes: "shape relation second".
    """

    shape: str | None = None
    color: str | None = None
    fill: str | None = None
    size: str | None = None
    count: str | None = None
    tone: str | None = None
    relation: str | None = None
    second: str | None = None
    second_color: str | None = None


def parse_spec(text: str) -> PictureSpec:
    """Parse a phrase such as "two hollow stars", "big red ring on a tan background" or "star above a pink heart".

    Raises:
        ValueError: a word that is not in the vocabulary.
    """
    spec: dict[str, str] = {}
    for word in text.split():
        shape = PLURALS.get(word, word)
        if word in RELATIONS:
            spec["relation"] = word
        elif shape in SHAPES:
            spec["second" if "relation" in spec else "shape"] = shape
        elif word in COLORS:
            spec["second_color" if "relation" in spec else "color"] = word
        elif word in BACKGROUNDS:
            spec["tone"] = word
        elif word in FILLS:
            spec["fill"] = word
        elif word in SIZES:
            spec["size"] = word
        elif word in COUNTS:
            spec["count"] = word
        elif word not in ("a", "an", "on", "background"):
            raise ValueError(f"Unknown word '{word}' in '{text}'; a picture is described by words such as "
                             f"{', '.join([*COLORS, *FILLS, *SHAPES, *COUNTS, *RELATIONS])}.")
    return PictureSpec(**spec)


def _jittered(rng: RandomStream, color: str) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, c + rng.between(-28, 28))) for c in COLORS[color])
    return red, green, blue


def _pair(rng: RandomStream, spec: PictureSpec, shape: str, color: str, fill: str) -> list[PlacedShape]:
    """Return two shapes of equal radius, the first above the second or on either side of it."""
    second = spec.second or rng.pick(list(SHAPES))
    second_color = spec.second_color or rng.pick(list(COLORS))
    radius = rng.between(72, 120)
    shift, drift = radius + rng.between(8, 24), rng.between(-24, 24)
    x, y = CENTER + rng.between(-16, 16), CENTER + rng.between(-16, 16)
    dx, dy = (drift, shift) if spec.relation == "above" else (shift, drift)
    ends = [(x - dx, y - dy), (x + dx, y + dy)]
    if spec.relation == "beside" and rng.chance(50):
        ends.reverse()
    words = ((shape, fill, color), (second, spec.fill or "solid", second_color))
    return [
        PlacedShape(shape, fill, _jittered(rng, color), x, y, radius, rng.below(TURN), rng.below(512))
        for (shape, fill, color), (x, y) in zip(words, ends, strict=True)
    ]


def _group(rng: RandomStream, spec: PictureSpec, shape: str, color: str, fill: str) -> list[PlacedShape]:
    """Return one shape at any position, or several equal ones, each in its own quarter of the picture."""
    count = COUNTS[spec.count or "one"]
    radius = rng.between(*(SIZES[spec.size] if count == 1 else GROUP_RADIUS))
    if count == 1:
        middles, half = [(CENTER, CENTER)], CENTER
    else:
        near, far, half = CENTER // 2, 3 * CENTER // 2, CENTER // 2
        middles = rng.sample([(near, near), (far, near), (near, far), (far, far)], count)
    room = max(0, half - radius)
    places = [(x + rng.between(-room, room), y + rng.between(-room, room)) for x, y in middles]
    rgb, phase = _jittered(rng, color), rng.below(512)
    return [PlacedShape(shape, fill, rgb, x, y, radius, rng.below(TURN), phase) for x, y in places]


def draw(rng: RandomStream, spec: PictureSpec) -> np.ndarray:
    """Draw a clean picture (SIDE, SIDE, 3), uint8, that meets `spec`; whatever it leaves open is drawn from `rng`."""
    picture = background(rng, spec.tone or rng.pick(list(BACKGROUNDS)))
    shape = spec.shape or rng.pick(list(SHAPES))
    color = spec.color or rng.pick(list(COLORS))
    fill = spec.fill or ("solid" if rng.chance(50) else rng.pick(list(FILLS)))
    arrange = _pair if spec.relation else _group
    for item in arrange(rng, spec, shape, color, fill):
        paint(picture, item)
    return np.clip(picture, 0, 255).astype(np.uint8)
