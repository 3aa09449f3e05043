from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recap_ray.demo.render import PALETTE, STYLES, render
from recap_ray.demo.scenes import Scene, Shape, sample_scenes
from recap_ray.errors import UserError

SCENE = Scene(Shape("red", "large", "square"), "left of", Shape("blue", "small", "circle"), "white")


@pytest.mark.parametrize("style", STYLES)
def test_the_same_arguments_give_the_same_pixels(style: str) -> None:
    for seed, scene in enumerate(sample_scenes(20, 0, evaluation=False)):
        assert render(scene, style, seed).tobytes() == render(scene, style, seed).tobytes()


@pytest.mark.parametrize("style", STYLES)
def test_another_seed_moves_the_shapes(style: str) -> None:
    assert render(SCENE, style, 1).tobytes() != render(SCENE, style, 2).tobytes()


def test_a_swapped_scene_is_the_same_picture() -> None:
    assert render(SCENE, "filled", 3).tobytes() == render(SCENE.swapped(), "filled", 3).tobytes()


@pytest.mark.parametrize("size", [32, 64, 224])
def test_the_picture_has_the_size_asked_for(size: int) -> None:
    image = render(SCENE, "outlined", 0, size=size)
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


def test_an_outline_is_a_line_around_a_paler_wash() -> None:
    for seed in range(20):
        filled, outlined = (np.asarray(render(SCENE, style, seed)).astype(float) for style in ("filled", "outlined"))
        row, column = (round(x) for x in where(filled, "red"))
        assert nearest_colour(filled[row, column]) == "red"
        inside, across = outlined[row, column], outlined[row, : np.asarray(outlined).shape[1] // 2]
        strength = across.max(axis=1) - across.min(axis=1)  # how coloured each pixel is; paper and squares are not
        assert 30 < np.ptp(inside) < 0.8 * strength.max()


@pytest.mark.parametrize(("background", "darker"), [("white", True), ("beige", True), ("grey", True), ("black", False)])
def test_the_paper_of_the_outlined_style_is_squared(background: str, darker: bool) -> None:
    scene = replace(SCENE, background=background)
    filled, outlined = (np.asarray(render(scene, style, 0, size=128)).astype(float) for style in ("filled", "outlined"))
    edge = slice(0, 4), slice(None)  # no shape comes near the upper edge when both stand side by side
    assert filled[edge].std(axis=(0, 1)).max() < 1
    change = (outlined[edge] - filled[edge]).mean(axis=2)
    assert ((change < -20) if darker else (change > 20)).mean() > 0.1


def test_an_unknown_style_is_told_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="'etched' is unknown: use one of filled, outlined"):
        render(SCENE, "etched", 0)


def is_near(pixels: np.ndarray, name: str) -> np.ndarray:
    return np.abs(pixels - np.array(PALETTE[name])).max(axis=-1) < 40


def where(pixels: np.ndarray, name: str) -> tuple[float, float]:
    rows, columns = np.nonzero(is_near(pixels, name))
    return float(rows.mean()), float(columns.mean())


def area(pixels: np.ndarray, name: str) -> int:
    return int(is_near(pixels, name).sum())


def nearest_colour(pixel: np.ndarray) -> str:
    return min(PALETTE, key=lambda name: float(np.abs(pixel - np.array(PALETTE[name])).sum()))
