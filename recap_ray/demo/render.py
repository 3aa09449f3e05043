"""Pictures of scenes in two styles.

`filled` is what the tiny CLIP is trained on: flat shapes, drawn with Pillow. `photographed` is the shifted domain: the
same scene as wooden blocks on a cloth, under a warm lamp (photograph.py). The colours stay those that captions name,
and light, shadow and thickness move the embeddings of all scenes alike, which a linear map can undo.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from recap_ray.demo.photograph import Block, Photograph
from recap_ray.demo.scenes import Scene, Shape, canonical
from recap_ray.errors import UserError

STYLES = ("filled", "photographed")
SUPERSAMPLING = 3  # drawn this many times larger, then averaged down: Pillow draws without smoothing

PALETTE = {
    "red": (214, 40, 40),
    "orange": (244, 132, 28),
    "yellow": (246, 214, 40),
    "green": (44, 150, 60),
    "turquoise": (50, 196, 190),
    "blue": (40, 72, 210),
    "purple": (132, 44, 160),
    "pink": (246, 140, 186),
    "white": (250, 250, 250),
    "beige": (222, 200, 160),
    "grey": (132, 132, 132),
    "black": (22, 22, 22),
}
RADIUS = {"small": 0.135, "large": 0.205}  # of the picture's side
BLOCK_SIZE, BLOCK_SPREAD = 0.9, 1.22  # to a drawn shape and its distance from the middle: blocks must not touch
Point = tuple[float, float]
Colour = tuple[int, int, int]
Placed = tuple[list[Point], Colour]  # a shape's corners and its colour


def render(scene: Scene, style: str, seed: int, size: int = 64) -> Image.Image:
    """Return a `size` x `size` RGB picture of the scene; the same arguments give the same pixels.

    `seed` moves the shapes, turns them a little and varies their shade. A scene and its swapped equivalent
    give one picture.
    """
    if style not in STYLES:
        raise UserError(f"drawing style {style!r} is unknown: use one of {', '.join(STYLES)}")
    scene = canonical(scene)
    rng = random.Random(f"picture {seed}")
    background = shade(PALETTE[scene.background], rng, 8)
    if style == "filled":
        return draw(background, placed(scene, rng), size)
    return photograph(background, placed(scene, rng, BLOCK_SIZE, BLOCK_SPREAD), size, seed)


def draw(background: Colour, shapes: Sequence[Placed], size: int) -> Image.Image:
    """Return the shapes in flat colours."""
    side = size * SUPERSAMPLING
    image = Image.new("RGB", (side, side), background)
    for corners, colour in shapes:
        ImageDraw.Draw(image).polygon([(x * side, y * side) for x, y in corners], fill=colour)
    return image.reduce(SUPERSAMPLING)


def photograph(background: Colour, shapes: Sequence[Placed], size: int, seed: int) -> Image.Image:
    """Return the shapes as blocks; `seed` moves camera, lamp and folds too."""
    blocks = [Block(np.array(corners), linear(colour)) for corners, colour in shapes]
    return Photograph(size, linear(background), blocks, seed).developed()


def placed(scene: Scene, rng: random.Random, scale: float = 1, spread: float = 1) -> list[Placed]:
    """Return the two shapes of a canonical scene, `scale` times as large and `spread` times as far from the middle."""
    return [
        place(shape, (0.5 + (x - 0.5) * spread, 0.5 + (y - 0.5) * spread), scale, rng)
        for shape, (x, y) in zip((scene.first, scene.second), centres(scene, rng), strict=True)
    ]


def centres(scene: Scene, rng: random.Random) -> tuple[Point, Point]:
    """Where the two shapes of a canonical scene stand, as shares of the picture's side."""
    along = 0.27 + rng.uniform(-0.04, 0.04), 0.73 + rng.uniform(-0.04, 0.04)
    across = 0.5 + rng.uniform(-0.12, 0.12), 0.5 + rng.uniform(-0.12, 0.12)
    if scene.relation == "left of":
        return (along[0], across[0]), (along[1], across[1])
    return (across[0], along[0]), (across[1], along[1])


def place(shape: Shape, centre: Point, scale: float, rng: random.Random) -> Placed:
    """Return the corners of a shape and its colour, both varied a little."""
    radius = scale * RADIUS[shape.size] * rng.uniform(0.92, 1.08)
    turn = math.radians(rng.uniform(-8, 8))
    colour = shade(PALETTE[shape.colour], rng, 14)
    return outline(shape.kind, centre, radius, turn), colour


def outline(kind: str, centre: Point, radius: float, turn: float) -> list[Point]:
    """Return the corners of a shape around `centre`, `turn` radians clockwise; a circle has 40 of them."""
    if kind == "circle":
        corners = [(0.92, 2 * math.pi * i / 40) for i in range(40)]
    elif kind == "square":
        corners = [(1.25, math.pi * (i / 2 + 0.25)) for i in range(4)]
    elif kind == "diamond":
        corners = [((1.3, 0.75)[i % 2], math.pi * (i / 2 - 0.5)) for i in range(4)]
    elif kind == "triangle":
        corners = [(1.2, math.pi * (2 * i / 3 - 0.5)) for i in range(3)]
    else:
        corners = [((1.25, 0.5)[i % 2], math.pi * (i / 5 - 0.5)) for i in range(10)]
    return [
        (centre[0] + radius * r * math.cos(a + turn), centre[1] + radius * r * math.sin(a + turn)) for r, a in corners
    ]


def shade(colour: Colour, rng: random.Random, amount: int) -> Colour:
    """Return the colour, each channel moved by up to `amount`."""
    red, green, blue = (min(255, max(0, c + rng.randint(-amount, amount))) for c in colour)
    return red, green, blue


def linear(colour: Colour) -> np.ndarray:
    """Return the colour as shares of light (photograph.py)."""
    return (np.array(colour, np.float32) / 255) ** 2
