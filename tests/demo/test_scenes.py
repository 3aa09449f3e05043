from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_ray.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    EVALUATION_SHARE,
    KINDS,
    RELATIONS,
    SIZES,
    Scene,
    Shape,
    canonical,
    is_evaluation,
    random_scene,
    sample_scenes,
    variations,
)
from recap_ray.errors import UserError

shapes = st.builds(Shape, st.sampled_from(COLOURS), st.sampled_from(SIZES), st.sampled_from(KINDS))
scenes = st.builds(Scene, shapes, st.sampled_from(RELATIONS), shapes, st.sampled_from(BACKGROUNDS)).filter(
    lambda scene: scene.first.colour != scene.second.colour
)


@given(scenes)
def test_swapping_keeps_the_picture_and_the_side_of_the_split(scene: Scene) -> None:
    assert scene.swapped() != scene
    assert scene.swapped().swapped() == scene
    assert canonical(scene.swapped()) == canonical(scene)
    assert is_evaluation(scene.swapped()) == is_evaluation(scene)


@given(scenes, st.sampled_from(SIZES), st.sampled_from(BACKGROUNDS))
def test_what_a_caption_may_leave_out_does_not_change_the_side_of_the_split(
    scene: Scene, size: str, background: str
) -> None:
    first = Shape(scene.first.colour, size, scene.first.kind)
    assert is_evaluation(Scene(first, scene.relation, scene.second, background)) == is_evaluation(scene)


def test_no_evaluation_scene_is_among_many_training_scenes_even_when_told_the_other_way() -> None:
    training = {canonical(scene) for scene in sample_scenes(20_000, 1, evaluation=False)}
    evaluation = sample_scenes(2_000, 2, evaluation=True)
    assert not any(canonical(scene) in training for scene in evaluation)
    assert not any(canonical(scene.swapped()) in training for scene in evaluation)


def test_the_evaluation_side_has_about_its_share_of_scenes() -> None:
    rng = random.Random(0)
    drawn = [
        Scene(Shape(*first), relation, Shape(*second), "white")
        for relation in RELATIONS
        for first, second in [
            [(rng.choice(COLOURS), "small", rng.choice(KINDS)) for _ in range(2)] for _ in range(2_000)
        ]
    ]
    share = sum(map(is_evaluation, drawn)) / len(drawn)
    assert abs(share - EVALUATION_SHARE) < 0.03


def test_the_split_is_the_same_in_another_process() -> None:
    sample = sample_scenes(20, 5, evaluation=True)
    program = "from recap_ray.demo.scenes import sample_scenes; print(sample_scenes(20, 5, True))"
    told = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert told == [str(sample)] * 2


@pytest.mark.parametrize("evaluation", [False, True])
def test_sampled_scenes_are_distinct_pictures_of_the_wanted_side(evaluation: bool) -> None:
    sample = sample_scenes(1_000, 3, evaluation)
    assert len({canonical(scene) for scene in sample}) == 1_000
    assert {is_evaluation(scene) for scene in sample} == {evaluation}
    assert sample == sample_scenes(1_000, 3, evaluation)
    assert sample != sample_scenes(1_000, 4, evaluation)


def test_asking_for_more_scenes_than_there_are_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match="evaluation scenes, but there are few more than .*: ask for fewer"):
        sample_scenes(1_000_000, 0, evaluation=True)


def test_variations_differ_in_one_attribute_and_stay_on_their_side() -> None:
    scene = random_scene(random.Random(4), evaluation=False)
    told = variations(scene)
    assert len(told) > 10
    for other in told:
        assert is_evaluation(other) is False
        differences = [getattr(scene.first, name) != getattr(other.first, name) for name in ("colour", "size", "kind")]
        differences += [
            getattr(scene.second, name) != getattr(other.second, name) for name in ("colour", "size", "kind")
        ]
        differences += [scene.relation != other.relation, scene.background != other.background]
        assert sum(differences) == 1
