"""Pictures of scenes in two drawing styles, with Pillow alone.

`filled` is what the tiny CLIP is trained on. `outlined` is the shifted domain: the same scene as a drawing on
squared paper, a coloured line around a pale wash, in inks whose hue is turned. All of it moves embeddings the
same way for every scene, so the untouched CLIP reads the drawings badly, and a linear map mends most of it.
"""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from recap_ray.demo.scenes import Scene, Shape, canonical
from recap_ray.errors import UserError

STYLES = ("filled", "outlined")
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
LINE_WIDTH = 0.04  # of an outline, as a share of the picture's side, like all lengths here
WASH = 0.6  # how strong the colour is inside an outline; the paper shows through the rest
HUE_TURN = 60  # degrees, of the pens' inks: red is drawn in yellow, green in blue
SQUARES, SQUARE_LINE_WIDTH, SQUARE_INK = 8, 0.012, 0.3
Point = tuple[float, float]
Colour = tuple[int, int, int]


def render(scene: Scene, style: str, seed: int, size: int = 64) -> Image.Image:
    """A `size` x `size` RGB picture of the scene; the same arguments give the same pixels.

    `seed` moves the shapes, turns them a little and varies their shade. A scene and its swapped equivalent
    give one picture.
    """
    if style not in STYLES:
        raise UserError(f"drawing style {style!r} is unknown: use one of {', '.join(STYLES)}")
    scene = canonical(scene)
    rng = random.Random(f"picture {seed}")
    side = size * SUPERSAMPLING
    background = shade(PALETTE[scene.background], rng, 8)
    image = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(image)
    if style == "outlined":
        draw_squares(draw, background, side)
    for shape, centre in zip((scene.first, scene.second), centres(scene, rng), strict=True):
        points, colour = place(shape, centre, side, rng)
        if style == "filled":
            draw.polygon(points, fill=colour)
        else:
            draw.polygon(points, fill=mix(background, colour, WASH))
            width = max(1, round(LINE_WIDTH * side))
            draw.line([*points, points[0], points[1]], fill=colour, width=width, joint="curve")
    image = image.reduce(SUPERSAMPLING)
    return turn_hues(image) if style == "outlined" else image


def turn_hues(image: Image.Image) -> Image.Image:
    """The picture with every hue turned by HUE_TURN; greys stay grey."""
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(h + round(HUE_TURN / 360 * 256)) % 256 for h in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def centres(scene: Scene, rng: random.Random) -> tuple[Point, Point]:
    """Where the two shapes of a canonical scene stand, as shares of the picture's side."""
    along = 0.27 + rng.uniform(-0.04, 0.04), 0.73 + rng.uniform(-0.04, 0.04)
    across = 0.5 + rng.uniform(-0.12, 0.12), 0.5 + rng.uniform(-0.12, 0.12)
    if scene.relation == "left of":
        return (along[0], across[0]), (along[1], across[1])
    return (across[0], along[0]), (across[1], along[1])


def draw_squares(draw: ImageDraw.ImageDraw, background: Colour, side: int) -> None:
    """Rule the paper in squares, darker than light paper and lighter than black paper."""
    ink = mix(background, (0, 0, 0) if sum(background) > 300 else (255, 255, 255), SQUARE_INK)
    width = max(1, round(SQUARE_LINE_WIDTH * side))
    for i in range(SQUARES):
        at = (i + 0.5) * side / SQUARES
        draw.line([at, 0, at, side], fill=ink, width=width)
        draw.line([0, at, side, at], fill=ink, width=width)


def place(shape: Shape, centre: Point, side: int, rng: random.Random) -> tuple[list[Point], Colour]:
    """The corners of a shape in pixels and its colour, both varied a little."""
    radius = RADIUS[shape.size] * rng.uniform(0.92, 1.08) * side
    turn = math.radians(rng.uniform(-8, 8))
    colour = shade(PALETTE[shape.colour], rng, 14)
    return outline(shape.kind, (centre[0] * side, centre[1] * side), radius, turn), colour


def outline(kind: str, centre: Point, radius: float, turn: float) -> list[Point]:
    """The corners of a shape around `centre`, `turn` radians clockwise; a circle has 40 of them."""
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
    """The colour, each channel moved by up to `amount`."""
    red, green, blue = (min(255, max(0, c + rng.randint(-amount, amount))) for c in colour)
    return red, green, blue


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour over the rest of the first."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue
