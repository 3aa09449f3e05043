"""Scenes: two shapes in a relation on a background, and their split into training and evaluation.

A scene says what is in a picture, not how it is drawn (render.py) or told (grammar.py).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from recap_ray.errors import UserError

COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")
SIZES = ("small", "large")
KINDS = ("circle", "square", "triangle", "diamond", "star")
BACKGROUNDS = ("white", "beige", "grey", "black")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)
CANONICAL_RELATIONS = ("left of", "above")

EVALUATION_SHARE = 0.2  # of all combinations of two coloured shapes and a relation


@dataclass(frozen=True, order=True)
class Shape:
    """One shape of a scene, such as a small red circle."""

    colour: str
    size: str
    kind: str


@dataclass(frozen=True, order=True)
class Scene:
    """`first` stands in `relation` to `second`, on `background`; the two differ in colour.

    "A left of B" and "B right of A" are two Scene values with one picture: see `canonical`.
    """

    first: Shape
    relation: str
    second: Shape
    background: str

    def swapped(self) -> Scene:
        """Return the same picture described from the other shape, with the inverse relation."""
        return Scene(self.second, INVERSE[self.relation], self.first, self.background)


def canonical(scene: Scene) -> Scene:
    """Return the one of the two equivalent scenes that says "left of" or "above"."""
    return scene if scene.relation in CANONICAL_RELATIONS else scene.swapped()


def is_evaluation(scene: Scene) -> bool:
    """Whether the scene is held out: no training text or picture may show it.

    Decided by the colours and kinds of both shapes and their relation alone. Size and background do not
    count, for a caption may leave them out, and then no caption of a held-out scene is one of a training
    scene either. The hash is a stable one, so the split is the same on every machine.
    """
    scene = canonical(scene)
    parts = (scene.first.colour, scene.first.kind, scene.relation, scene.second.colour, scene.second.kind)
    digest = hashlib.blake2b("|".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < EVALUATION_SHARE * 2**64


def random_shape(rng: random.Random, colours: Sequence[str] = COLOURS, kinds: Sequence[str] = KINDS) -> Shape:
    """Return a shape with each attribute drawn uniformly."""
    return Shape(rng.choice(colours), rng.choice(SIZES), rng.choice(kinds))


def random_scene(
    rng: random.Random, evaluation: bool, colours: Sequence[str] = COLOURS, kinds: Sequence[str] = KINDS
) -> Scene:
    """Return a scene of the wanted side of the split, drawn uniformly."""
    while True:
        first, relation = random_shape(rng, colours, kinds), rng.choice(RELATIONS)
        scene = Scene(first, relation, random_shape(rng, colours, kinds), rng.choice(BACKGROUNDS))
        if is_valid(scene) and is_evaluation(scene) == evaluation:
            return scene


def is_valid(scene: Scene) -> bool:
    """Whether the two shapes can be told apart by colour, as every scene of this world promises."""
    return scene.first.colour != scene.second.colour


def variations(scene: Scene) -> list[Scene]:
    """All valid scenes of the same side of the split that differ from `scene` in exactly one attribute."""
    changed = [replace(scene, background=background) for background in BACKGROUNDS]
    changed += [replace(scene, relation=relation) for relation in RELATIONS]
    for name, values in (("colour", COLOURS), ("size", SIZES), ("kind", KINDS)):
        for value in values:
            changed.append(replace(scene, first=replace(scene.first, **{name: value})))
            changed.append(replace(scene, second=replace(scene.second, **{name: value})))
    side = is_evaluation(scene)
    return [other for other in changed if other != scene and is_valid(other) and is_evaluation(other) == side]


def sample_scenes(
    count: int, seed: int, evaluation: bool, colours: Sequence[str] = COLOURS, kinds: Sequence[str] = KINDS
) -> list[Scene]:
    """`count` scenes of distinct pictures from one side of the split, the same for the same seed.

    `colours` and `kinds` narrow the shapes. Raises UserError if there are not so many scenes.
    """
    rng = random.Random(f"scenes {seed}")
    found: dict[Scene, Scene] = {}
    misses = 0
    while len(found) < count:
        scene = random_scene(rng, evaluation, colours, kinds)
        misses = misses + 1 if canonical(scene) in found else 0
        if misses > 500:
            side = "evaluation" if evaluation else "training"
            raise UserError(
                f"asked for {count} distinct {side} scenes, but there are few more than {len(found)}: ask for fewer"
            )
        found.setdefault(canonical(scene), scene)
    return list(found.values())
