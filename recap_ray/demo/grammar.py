"""Captions of scenes, and the parser that judges generated text.

The words below are the whole grammar: `describe` puts them together, `parse` takes them apart again.
Every caption names the relation and both shapes' colours and kinds; size and background may be left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from recap_ray.demo.scenes import BACKGROUNDS, COLOURS, INVERSE, Scene, Shape

KIND_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "rhombus"),
    "star": ("star",),
}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
# "B with A on its left" says "A left of B".
SIDE_WORDS = {"left of": "on its left", "right of": "on its right", "above": "above it", "below": "below it"}
BACKGROUND_WORDS = ("on a {} background", "against a {} backdrop", "on {}")
OPENINGS = ("", "there is ", "a picture of ", "a drawing of ")
KEEP_SIZE, KEEP_BACKGROUND = 0.75, 0.7  # how often a caption mentions them


@dataclass(frozen=True)
class ParsedShape:
    """What a caption says of one shape; `size` is None where it does not say."""

    colour: str
    size: str | None
    kind: str


@dataclass(frozen=True)
class ParsedScene:
    """What a caption says: `first` stands in `relation` to `second`; None where it does not say."""

    first: ParsedShape
    relation: str
    second: ParsedShape
    background: str | None

    def swapped(self) -> ParsedScene:
        """Return the same statement made from the other shape."""
        return ParsedScene(self.second, INVERSE[self.relation], self.first, self.background)

    def describes(self, scene: Scene) -> bool:
        """Whether everything said is true of the scene."""
        return any(_all_true(statement, scene) for statement in (self, self.swapped()))


def describe(scene: Scene, rng: random.Random) -> str:
    """One caption of the scene in lower case, ending in a full stop."""
    if rng.random() < 0.5:
        scene = scene.swapped()
    first, second = (_shape_phrase(shape, rng) for shape in (scene.first, scene.second))
    background = ""
    if rng.random() < KEEP_BACKGROUND:
        background = rng.choice(BACKGROUND_WORDS).format(scene.background)
    opening = rng.choice(OPENINGS)
    if rng.random() < 0.25:
        core = f"{second} with {first} {SIDE_WORDS[scene.relation]}"
    else:
        verb = "is " if not opening and rng.random() < 0.5 else ""
        core = f"{first} {verb}{rng.choice(RELATION_WORDS[scene.relation])} {second}"
    if background and not opening and rng.random() < 0.3:
        return f"{background}, {core}."
    return f"{opening}{core} {background}".rstrip() + "."


def captions(scene: Scene, count: int, seed: int) -> list[str]:
    """`count` different captions of the scene, which has thousands; the same for the same arguments."""
    rng = random.Random(f"captions {seed} {scene}")
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(describe(scene, rng))
    return list(found)


def parse(caption: str) -> ParsedScene | None:
    """Return what the caption says, or None where it is no sentence of the grammar.

    Letter case, spacing and the final full stop do not matter; everything else does.
    """
    match = _SENTENCE.fullmatch(" ".join(caption.lower().split()).removesuffix("."))
    if match is None:
        return None
    background = match["background_before"] or match["background_after"]
    if match["side"]:
        return ParsedScene(
            _parsed_shape(match, "3"), _RELATION_OF_SIDE[match["side"]], _parsed_shape(match, "1"), background
        )
    return ParsedScene(
        _parsed_shape(match, "1"), _RELATION_OF_WORD[match["relation"]], _parsed_shape(match, "2"), background
    )


def names_both_objects(caption: str, scene: Scene) -> bool:
    """Whether the caption is a sentence that gives both shapes their right colour and kind, in either order."""
    parsed = parse(caption)
    if parsed is None:
        return False
    named = sorted((shape.colour, shape.kind) for shape in (parsed.first, parsed.second))
    return named == sorted((shape.colour, shape.kind) for shape in (scene.first, scene.second))


def _shape_phrase(shape: Shape, rng: random.Random) -> str:
    size = rng.choice(SIZE_WORDS[shape.size]) + " " if rng.random() < KEEP_SIZE else ""
    words = f"{size}{shape.colour} {rng.choice(KIND_WORDS[shape.kind])}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _parsed_shape(match: re.Match[str], number: str) -> ParsedShape:
    size = match[f"size_{number}"]
    return ParsedShape(match[f"colour_{number}"], _SIZE_OF_WORD.get(size), _KIND_OF_WORD[match[f"kind_{number}"]])


def _all_true(statement: ParsedScene, scene: Scene) -> bool:
    shapes = ((statement.first, scene.first), (statement.second, scene.second))
    return (
        all((said.colour, said.kind) == (shape.colour, shape.kind) for said, shape in shapes)
        and all(said.size in (None, shape.size) for said, shape in shapes)
        and statement.relation == scene.relation
        and statement.background in (None, scene.background)
    )


def _value_of_word(words: Mapping[str, tuple[str, ...]]) -> dict[str | None, str]:
    return {word: value for value, synonyms in words.items() for word in synonyms}


_KIND_OF_WORD = _value_of_word(KIND_WORDS)
_SIZE_OF_WORD = _value_of_word(SIZE_WORDS)
_RELATION_OF_WORD = _value_of_word(RELATION_WORDS)
_RELATION_OF_SIDE = {words: relation for relation, words in SIDE_WORDS.items()}


def _one_of(name: str, words: Iterable[str | None]) -> str:
    return f"(?P<{name}>{'|'.join(re.escape(word) for word in words if word)})"


def _shape_pattern(number: str) -> str:
    size, colour = _one_of(f"size_{number}", _SIZE_OF_WORD), _one_of(f"colour_{number}", COLOURS)
    return f"an? (?:{size} )?{colour} {_one_of(f'kind_{number}', _KIND_OF_WORD)}"


def _background_pattern(name: str) -> str:
    # One group name may stand only once in a pattern, so the wordings share the colour between them.
    before = "|".join(sorted({words.split("{}")[0] for words in BACKGROUND_WORDS}, key=len, reverse=True))
    after = "|".join({words.split("{}")[1] for words in BACKGROUND_WORDS})
    return f"(?:{before}){_one_of(name, BACKGROUNDS)}(?:{after})"


_SENTENCE = re.compile(
    f"(?:{_background_pattern('background_before')}, )?"
    f"(?:{'|'.join(OPENINGS)})"
    f"{_shape_pattern('1')} "
    f"(?:(?:is )?{_one_of('relation', _RELATION_OF_WORD)} {_shape_pattern('2')}"
    f"|with {_shape_pattern('3')} {_one_of('side', _RELATION_OF_SIDE)})"
    f"(?: {_background_pattern('background_after')})?"
)
