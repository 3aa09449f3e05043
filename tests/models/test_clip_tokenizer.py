from collections.abc import Callable, Sequence

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from recap_ray.models import clip_tokenizer
from recap_ray.models.clip_tokenizer import PieceTokenizer, fast_tokenizer
from recap_ray.models.tiny import TINY_CLIP

ODD = (
    "",
    "   ",
    "A Man's dog, isn't it? They'll run 12.5 miles; I'd've gone.",
    "caf\u00e9 na\u00efve \u00dcbergr\u00f6\u00dfe \u0130stanbul \u017fhe '\u017f \u4e16\u754c \u0e01\u0e33",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd",
    "fish &amp; chips &lt;b&gt; &amp;amp;amp; AT&T & co.",
    "sch\u00c3\u00b6n",  # UTF-8 read as Latin-1
    "\u201ccurly\u201d \ufb01sh \uff21\uff22",
    "bell\x07 escape\x1b[31mred\x1b[0m del\x7f file\x1cgroup\x1dtab\tline\nfeed\x0bform\x0creturn\r\nno\xa0break\u2028",
    "<end_of_text> a <start_of_text> b <END_OF_TEXT>c<end_of_text>",
    "\ud83d lone surrogate",
    "word " * 200,
    "a" * 500,
    "snake_case 3.14 --- ... !!! ###",
)


@pytest.fixture(scope="module")
def theirs() -> SimpleTokenizer:
    return open_clip.get_tokenizer("ViT-B-32")


@pytest.fixture(scope="module")
def ours() -> Callable[[Sequence[str]], np.ndarray]:
    return fast_tokenizer(open_clip.get_tokenizer("ViT-B-32"))


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    width = ours.shape[1]
    return ours.dtype == np.int64 and np.array_equal(ours, theirs[:, :width]) and not theirs[:, width:].any()


def test_odd_texts_have_open_clips_ids_the_first_time_and_the_second(ours, theirs):
    assert isinstance(ours, PieceTokenizer)
    for _ in range(2):
        assert same(ours(ODD), theirs(list(ODD)).numpy())


def test_ids_are_as_wide_as_the_longest_text(ours):
    assert ours(["a dog", "a dog runs", ""]).shape == (3, 5)
    assert ours(ODD).shape == (len(ODD), 77)
    assert ours([]).shape == (0, 0)


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_has_open_clips_ids(ours, theirs, texts):
    assert same(ours(texts), theirs(texts).numpy())


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii"), max_size=100))
def test_cleaning_is_skipped_only_where_it_changes_nothing(ours, theirs, text):
    assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
def test_other_ways_of_cleaning_are_kept(clean):
    tokenizer = SimpleTokenizer(clean=clean, context_length=20)
    assert same(fast_tokenizer(tokenizer)(ODD), tokenizer(list(ODD)).numpy())


def test_a_full_memory_of_pieces_begins_again(monkeypatch, theirs):
    monkeypatch.setattr(clip_tokenizer, "PIECES", 3)
    tokenizer = fast_tokenizer(SimpleTokenizer())
    assert same(tokenizer(ODD), theirs(list(ODD)).numpy())
    assert len(tokenizer.pieces) <= 3
    assert len(tokenizer.pieces.tokenizer.cache) < 10


def test_tokenizers_that_do_more_are_used_as_they_are():
    for tokenizer in (
        SimpleTokenizer(reduction_mask="simple"),
        SimpleTokenizer(additional_special_tokens=["two words"]),
        open_clip.get_tokenizer(f"local-dir:{TINY_CLIP}"),
    ):
        found = fast_tokenizer(tokenizer)
        assert not isinstance(found, PieceTokenizer)
        assert np.array_equal(found(["two words"]), tokenizer(["two words"]).numpy())
