"""Pictures of wooden blocks on a cloth on a slatted table under a lamp, computed with numpy and Pillow.

Lengths are in sides of the cloth that the picture shows: x to the right, y towards the camera, z up from the cloth.
Colours are linear in light; the picture is their square root, which is close to sRGB.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

HEIGHT = 0.12  # of a block
PITCH = 80  # degrees, of the camera above the cloth
DISTANCE = 2.6  # of the camera from the middle of the cloth
STRETCH = 1.06  # of the picture's height, which fills what the pitch leaves empty
LAMP = (0.06, 0.1, 1.0)
LAMP_LIGHT = (1.3, 1.1, 0.8)  # red, green, blue at its foot
AMBIENT = 0.5  # light from everywhere, of the lamp's
SHADOW = 0.97  # of the lamp's light that a shadow takes
BEVEL = 0.016  # width of a block's rounded edge
SHINE, GLOSS = 0.2, 48  # light that a bevel reflects like a mirror, and how narrowly
GRAIN = 0.008  # of the film, as a deviation
EXPOSURE, FLICKER = 0.42, 0.04
WEAVE, FOLDS = 0.03, 0.012  # of the cloth: how much lighter and darker its threads are, and how high it lies
CLOTH = 0.375  # from the middle to a side of the cloth; the table is around it
TABLE = (0.6, 0.35, 0.12)  # red, green, blue
SLATS, SLAT_WIDTH = 0.8, 0.052  # of the table: how much lighter and darker each is than the table, and how wide
SUPERSAMPLING = 2  # of edges: Pillow draws without smoothing

Array = np.ndarray
Box = tuple[slice, slice]


@dataclass(frozen=True)
class Block:
    """A prism: the corners of its top (n x 2), clockwise as seen from above, and its linear colour."""

    corners: Array
    colour: Array


class Camera:
    """A pinhole in front of the cloth and above it; `rng` turns, moves and zooms it a little."""

    def __init__(self, size: int, rng: random.Random):
        self.size = size
        pitch, yaw = math.radians(PITCH + rng.uniform(-2, 2)), math.radians(rng.uniform(-5, 5))
        turned = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
        tilted = np.array([[1, 0, 0], [0, math.sin(pitch), -math.cos(pitch)], [0, -math.cos(pitch), -math.sin(pitch)]])
        self.axes = tilted @ turned  # rightwards and downwards in the picture, and away from the camera
        self.middle = (0.5 + rng.uniform(-0.02, 0.02)) * size, (0.515 + rng.uniform(-0.02, 0.02)) * size
        self.zoom = rng.uniform(0.89, 0.95) * DISTANCE * size

    def project(self, points: Array, z: float) -> Array:
        """Return the pixels (n x 2) of points (n x 2) at a height."""
        x, y, depth = self.axes @ np.column_stack([points - 0.5, np.full(len(points), z)]).T
        scale = self.zoom / (DISTANCE + depth)
        return np.column_stack([x * scale, y * scale * STRETCH]) + self.middle

    def cloth(self) -> tuple[Array, Array]:
        """Return the x and y (size x size each) of the cloth at every pixel: the inverse of `project` at z = 0."""
        corners = np.array([[0.0, 0.0], [1, 0], [1, 1], [0, 1]])
        rows = []
        for (x, y), (u, v) in zip(self.project(corners, 0.0), corners, strict=True):
            rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        a, b, c, d, e, f, g, h = np.linalg.solve(np.array(rows), corners.ravel()).astype(np.float32)
        x = np.arange(self.size, dtype=np.float32)[None] + np.float32(0.5)
        scale = 1 / (g * x + h * x.T + 1)
        return (a * x + b * x.T + c) * scale, (d * x + e * x.T + f) * scale


class Photograph:
    """A picture under way: cloth and table first, then the blocks, the farther ones before the nearer ones."""

    def __init__(self, size: int, cloth: Array, blocks: Sequence[Block], seed: int):
        rng, self.noise = random.Random(f"photograph {seed}"), np.random.default_rng(seed)
        self.camera = Camera(size, rng)
        self.lamp = [place + rng.uniform(-0.04, 0.04) for place in LAMP]
        self.exposure = EXPOSURE * rng.uniform(1 - FLICKER, 1 + FLICKER)
        self.x, self.y = self.camera.cloth()
        self.pixels = self.lit_ground(cloth, blocks)
        for block in sorted(blocks, key=lambda block: block.corners[:, 1].mean()):
            self.draw_walls(block)
            self.draw_top(block)

    def developed(self) -> Image.Image:
        """Return the RGB picture. As on film, bright places come near to white and never reach it."""
        light = self.pixels * (np.array(LAMP_LIGHT, np.float32) * -self.exposure)
        grain = GRAIN * self.noise.standard_normal((*self.x.shape, 1), np.float32)
        picture = np.sqrt(1 - np.exp(light)) + grain
        return Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))

    def lit_ground(self, colour: Array, blocks: Sequence[Block]) -> Array:
        """Return the cloth with its weave and folds on the table, in the lamp's light, and the blocks' shadows on
        both."""
        size = self.camera.size
        weave = np.sin(self.x * 420) * np.sin(self.y * 420) * WEAVE + self.smooth_noise(size // 3) * (2.5 * WEAVE)
        folds = (self.smooth_noise(4) + 0.5 * self.smooth_noise(7)) * (size * FOLDS)
        slope_y, slope_x = np.gradient(folds)
        light = self.light(self.x, self.y, 0.0, (-slope_x, -slope_y, 1.0)) * (1 - self.shadows(blocks)) + AMBIENT
        cloth = (1 + weave)[..., None] * (colour + 0.004)  # black cloth, too, shows its folds
        slats = 1 + SLATS * np.sign(np.sin(self.x * np.float32(math.pi / SLAT_WIDTH)))
        beyond = np.maximum(abs(self.x - 0.5), abs(self.y - 0.5)) - CLOTH
        on_cloth = np.clip(0.5 - beyond * size, 0, 1)[..., None]
        ground = cloth * on_cloth + slats[..., None] * np.array(TABLE, np.float32) * (1 - on_cloth)
        return ground * light[..., None]

    def light(self, x: Array, y: Array, z: float, normal: tuple[Array | float, ...]) -> Array:
        """Return the lamp's light, 1 at its foot, on surfaces at places and with unit normals."""
        dx, dy, dz = self.lamp[0] - x, self.lamp[1] - y, self.lamp[2] - z
        square = dx * dx + dy * dy + dz * dz
        facing = np.maximum(dx * normal[0] + dy * normal[1] + dz * normal[2], 0)
        return facing * (self.lamp[2] ** 2 / square / np.sqrt(square))

    def shadows(self, blocks: Sequence[Block]) -> Array:
        """Return the share of the lamp's light that blocks keep from each pixel of the cloth; its edge is soft."""
        size, lamp = self.camera.size, np.array(self.lamp)
        polygons = []
        for block in blocks:
            cast = lamp[:2] + (block.corners - lamp[:2]) * lamp[2] / (lamp[2] - HEIGHT)
            foot, tip = self.camera.project(block.corners, 0.0), self.camera.project(cast, 0.0)
            polygons += [foot, tip, *faces(foot, tip)]
        mask = draw_polygons((slice(0, size), slice(0, size)), polygons)
        sharp, soft = (mask.filter(ImageFilter.BoxBlur(size * radius)) for radius in (0.006, 0.025))
        return (np.asarray(sharp, np.float32) + np.asarray(soft, np.float32)) * (SHADOW / 2 / 255)

    def draw_walls(self, block: Block) -> None:
        """Paint the walls that face the camera, the farther ones first."""
        edges = np.roll(block.corners, -1, 0) - block.corners
        normals = np.column_stack([edges[:, 1], -edges[:, 0]]) / np.linalg.norm(edges, axis=1, keepdims=True)
        middles = block.corners + edges / 2
        light = self.light(middles[:, 0], middles[:, 1], HEIGHT / 2, (normals[:, 0], normals[:, 1], 0.0))
        light = np.minimum(light + AMBIENT * (1.6 + normals[:, 1]), 1)
        foot, top = (self.camera.project(block.corners, z) for z in (0.0, HEIGHT))
        order = np.argsort(middles[:, 1])
        box = self.box(np.concatenate([foot, top]))
        walls = list(faces(foot, top)[order])
        inside = as_shares(draw_polygons(box, walls))
        lit = as_shares(draw_polygons(box, walls, (np.sqrt(light[order]) * 255).astype(int)))
        lit = (lit / np.maximum(inside, 0.01)) ** 2
        self.paint(box, inside, lit[..., None] * block.colour)

    def draw_top(self, block: Block) -> None:
        """Paint the top: wood with a rounded edge, which shines where it mirrors the lamp."""
        corners = self.camera.project(block.corners, HEIGHT)
        box = self.box(corners)
        mask = draw_polygons(box, [corners])
        blur = BEVEL * self.camera.size
        rise = as_shares(mask.filter(ImageFilter.GaussianBlur(blur))) * (2.5 * blur)
        slope_y, slope_x = np.gradient(rise)
        length = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
        normal = -slope_x * length, -slope_y * length, length
        light = self.light(self.x[box], self.y[box], HEIGHT, normal)
        mirrored = self.halfway(*block.corners.mean(0))
        shine = np.maximum(normal[0] * mirrored[0] + normal[1] * mirrored[1] + normal[2] * mirrored[2], 0) ** GLOSS
        wood = 1 + self.smooth_noise(3, 70)[box] * 0.22
        top = ((light + 2 * AMBIENT) * wood)[..., None] * block.colour + (SHINE * shine * light)[..., None]
        self.paint(box, as_shares(mask), top)

    def halfway(self, x: float, y: float) -> list[float]:
        """Return the unit normal by which a surface at a place mirrors the lamp into the camera (Blinn, 1977)."""
        toward = np.array(self.lamp) - [x, y, HEIGHT]
        toward = toward / np.linalg.norm(toward) + [0, math.cos(math.radians(PITCH)), math.sin(math.radians(PITCH))]
        return [float(part) for part in toward / np.linalg.norm(toward)]

    def paint(self, box: Box, inside: Array, colour: Array) -> None:
        """Lay colours over a part of the picture, as far as each pixel is inside."""
        self.pixels[box] += inside[..., None] * (colour - self.pixels[box])

    def box(self, points: Array) -> Box:
        """Return the part of the picture that holds the points, and a bevel around them."""
        low = np.clip(points.min(0) - 3, 0, self.camera.size - 1).astype(int)
        high = np.clip(points.max(0) + 4, 1, self.camera.size).astype(int)
        return slice(low[1], high[1]), slice(low[0], high[0])

    def smooth_noise(self, rows: int, columns: int | None = None) -> Array:
        """Values of -.5 to .5 (size x size), smooth between rows x columns random ones."""
        coarse = Image.fromarray(self.noise.random((rows, columns or rows), np.float32))
        return np.asarray(coarse.resize(self.x.shape, Image.Resampling.BICUBIC)) - np.float32(0.5)


def faces(first: Array, second: Array) -> Array:
    """Return the four corners of each face between two polygons of n corners: n x 4 x 2."""
    return np.stack([first, np.roll(first, -1, 0), np.roll(second, -1, 0), second], axis=1)


def draw_polygons(box: Box, polygons: Sequence[Array], values: Sequence[int] | None = None) -> Image.Image:
    """Return a part of the picture with polygons one over the other, each in its grey value, 255 by default."""
    rows, columns = box
    mask = Image.new("L", ((columns.stop - columns.start) * SUPERSAMPLING, (rows.stop - rows.start) * SUPERSAMPLING))
    draw = ImageDraw.Draw(mask)
    corner = np.array([columns.start, rows.start])
    for i, polygon in enumerate(polygons):
        draw.polygon(
            ((polygon - corner) * SUPERSAMPLING).ravel().tolist(), fill=int(values[i]) if values is not None else 255
        )
    return mask.reduce(SUPERSAMPLING)


def as_shares(mask: Image.Image) -> Array:
    """Grey values as shares of 255."""
    return np.asarray(mask, np.float32) / np.float32(255)
