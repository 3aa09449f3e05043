from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recap_ray.demo.grammar import captions, describe, names_both_objects, parse
from recap_ray.demo.scenes import Scene, Shape, canonical, random_scene, sample_scenes, variations

SCENE = Scene(Shape("red", "small", "circle"), "left of", Shape("blue", "large", "star"), "white")


def a_scene(seed: int) -> Scene:
    return random_scene(random.Random(seed), evaluation=False)


@settings(max_examples=300)
@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_every_caption_parses_back_to_its_scene(scene_seed: int, wording_seed: int) -> None:
    scene = a_scene(scene_seed)
    caption = describe(scene, random.Random(wording_seed))
    parsed = parse(caption)
    assert parsed is not None, caption
    assert parsed.describes(scene)
    assert parsed.describes(scene.swapped())
    assert names_both_objects(caption, scene)


@settings(max_examples=100)
@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_caption_that_says_everything_is_true_of_no_other_scene(scene_seed: int, wording_seed: int) -> None:
    scene = a_scene(scene_seed)
    parsed = parse(describe(scene, random.Random(wording_seed)))
    assert parsed is not None
    if None in (parsed.background, parsed.first.size, parsed.second.size):
        return
    others = [other for other in variations(scene) if canonical(other) != canonical(scene)]
    assert not any(parsed.describes(other) for other in others)


def test_captions_are_different_repeatable_and_seeded() -> None:
    told = captions(SCENE, 5, seed=1)
    assert len(set(told)) == 5
    assert told == captions(SCENE, 5, seed=1)
    assert told != captions(SCENE, 5, seed=2)


def test_captions_vary_in_wording_order_and_in_what_they_leave_out() -> None:
    told = captions(SCENE, 60, seed=0)
    assert any("right of" in text for text in told)
    assert any("left of" in text for text in told)
    assert any("with" in text for text in told)
    assert any("disc" in text for text in told)
    assert any("white" not in text for text in told)
    assert any("small" not in text and "little" not in text for text in told)


def test_no_caption_of_an_evaluation_scene_is_one_of_a_training_scene() -> None:
    training = {text for scene in sample_scenes(5_000, 0, evaluation=False) for text in captions(scene, 2, 0)}
    held_out = {text for scene in sample_scenes(2_000, 0, evaluation=True) for text in captions(scene, 2, 0)}
    assert not training & held_out


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle left of a blue star.",
        "A RED circle  left of a blue star",
        "a blue star to the right of a little red disc on white.",
        "on a black background, a blue star with a red circle on its left.",
        "a red circle is above a blue star",
    ],
)
def test_both_objects_are_recognised_in_either_order_whatever_else_is_said(caption: str) -> None:
    assert names_both_objects(caption, SCENE)


@pytest.mark.parametrize(
    "caption",
    [
        "a blue circle left of a red star.",  # colours exchanged
        "a red circle left of a blue square.",
        "a red circle left of a green star.",
        "a red circle.",
        "a red circle left of a red circle.",
        "a red circle left of a blue star and a green square.",
        "red circle left of blue star.",
        "a red circle left of a blue star on a purple background.",
        "a red circle a blue star.",
        "a red circle left of left of a blue star.",
        "",
    ],
)
def test_wrong_or_broken_captions_do_not_name_both_objects(caption: str) -> None:
    assert not names_both_objects(caption, SCENE)


def test_a_parsed_caption_tells_what_was_said_and_none_for_the_rest() -> None:
    parsed = parse("a picture of a big blue star with a red disc on its left against a white backdrop.")
    assert parsed is not None
    assert (parsed.first.colour, parsed.first.size, parsed.first.kind) == ("red", None, "circle")
    assert (parsed.second.colour, parsed.second.size, parsed.second.kind) == ("blue", "large", "star")
    assert (parsed.relation, parsed.background) == ("left of", "white")


def test_a_wrong_relation_or_background_is_not_true_of_the_scene() -> None:
    for caption in (
        "a red circle right of a blue star.",
        "a red circle left of a blue star on black.",
        "a large red circle left of a blue star.",
    ):
        parsed = parse(caption)
        assert parsed is not None
        assert not parsed.describes(SCENE)
