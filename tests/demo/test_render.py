from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from recap_ray.demo.photograph import LAMP_LIGHT
from recap_ray.demo.render import BLOCK_SIZE, BLOCK_SPREAD, PALETTE, STYLES, linear, placed, render
from recap_ray.demo.scenes import COLOURS, Scene, Shape, canonical, sample_scenes
from recap_ray.errors import UserError

SCENE = Scene(Shape("red", "large", "square"), "left of", Shape("blue", "small", "circle"), "white")


@pytest.mark.parametrize("style", STYLES)
def test_the_same_arguments_give_the_same_pixels(style: str) -> None:
    for seed, scene in enumerate(sample_scenes(20, 0, evaluation=False)):
        assert render(scene, style, seed).tobytes() == render(scene, style, seed).tobytes()


@pytest.mark.parametrize("style", STYLES)
def test_another_seed_moves_the_shapes(style: str) -> None:
    assert render(SCENE, style, 1).tobytes() != render(SCENE, style, 2).tobytes()


@pytest.mark.parametrize("style", STYLES)
def test_a_swapped_scene_is_the_same_picture(style: str) -> None:
    assert render(SCENE, style, 3).tobytes() == render(SCENE.swapped(), style, 3).tobytes()


@pytest.mark.parametrize("size", [32, 64, 224])
def test_the_picture_has_the_size_asked_for(size: int) -> None:
    image = render(SCENE, "photographed", 0, size=size)
    assert image.size == (size, size)
    assert image.mode == "RGB"


def test_shapes_stand_where_the_relation_says() -> None:
    for seed in range(20):
        pixels = np.asarray(render(SCENE, "filled", seed)).astype(float)
        columns = {name: where(pixels, name)[1] for name in ("red", "blue")}
        assert columns["red"] < columns["blue"]
        above = Scene(SCENE.first, "above", SCENE.second, "white")
        pixels = np.asarray(render(above, "filled", seed)).astype(float)
        assert where(pixels, "red")[0] < where(pixels, "blue")[0]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_block_has_the_colour_that_captions_name_once_the_lamps_colour_is_taken_away(colour: str) -> None:
    other = "blue" if colour != "blue" else "red"
    scene = Scene(Shape(colour, "large", "square"), "left of", Shape(other, "large", "circle"), "grey")
    pictures = [np.asarray(render(scene, "photographed", seed, size=128)) for seed in range(5)]
    # Photograph.developed, undone
    tops = [-np.log(1 - (picture[56:66, 28:40].mean((0, 1)) / 255) ** 2) / LAMP_LIGHT for picture in pictures]
    seen = np.median([hue(top) for top in tops], axis=0)
    assert min(COLOURS, key=lambda name: angle(seen, hue(linear(PALETTE[name])))) == colour


def hue(light: np.ndarray) -> np.ndarray:
    """The light without its white part, which a bevel mirrors, with a largest channel of 1."""
    chromatic = light - light.min()
    return chromatic / chromatic.max()


def test_photographed_blocks_stand_where_the_relation_says() -> None:
    for seed in range(10):
        for relation, axis in (("left of", 1), ("above", 0)):
            pixels = np.asarray(render(replace(SCENE, relation=relation), "photographed", seed)).astype(float)
            red, blue = (middle(pixels, channel)[axis] for channel in (0, 2))
            assert red < blue


def test_blocks_do_not_run_into_each_other() -> None:
    for seed, scene in enumerate(canonical(scene) for scene in sample_scenes(300, 1, evaluation=False)):
        (first, _), (second, _) = placed(scene, random.Random(seed), BLOCK_SIZE, BLOCK_SPREAD)
        along = 0 if scene.relation == "left of" else 1
        assert max(point[along] for point in first) < min(point[along] for point in second)


def test_a_block_throws_its_shadow_away_from_the_lamp_and_light_does_not_clip() -> None:
    scene = Scene(Shape("red", "small", "circle"), "left of", Shape("blue", "small", "circle"), "white")
    for seed in range(5):
        pixels = np.asarray(render(scene, "photographed", seed, size=128)).astype(float)
        row, column = (round(place) for place in middle(pixels, 2))
        facing, behind = (
            pixels[row : row + 16, column - 28 : column - 18],
            pixels[row : row + 16, column + 18 : column + 28],
        )
        assert np.percentile(behind.mean(2), 20) < 0.75 * np.median(facing.mean(2))
        assert (pixels == 255).mean() < 1e-3


def test_an_unknown_style_is_told_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="'etched' is unknown: use one of filled, photographed"):
        render(SCENE, "etched", 0)


def angle(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.arccos(first @ second / np.linalg.norm(first) / np.linalg.norm(second)))


def middle(pixels: np.ndarray, channel: int) -> tuple[float, float]:
    """The row and column around which one channel outshines the others."""
    strength = pixels[..., channel] - np.delete(pixels, channel, axis=2).max(axis=2)
    rows, columns = np.nonzero(strength > 0.5 * strength.max())
    return float(rows.mean()), float(columns.mean())


def is_near(pixels: np.ndarray, name: str) -> np.ndarray:
    return np.abs(pixels - np.array(PALETTE[name])).max(axis=-1) < 40


def where(pixels: np.ndarray, name: str) -> tuple[float, float]:
    rows, columns = np.nonzero(is_near(pixels, name))
    return float(rows.mean()), float(columns.mean())
