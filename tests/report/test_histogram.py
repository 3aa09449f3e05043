import numpy as np

from recap_ray.report.histogram import HEIGHT, MAX_BARS, WIDTH, Counts, draw


def test_counts_added_part_by_part_are_those_of_all_numbers():
    numbers = np.random.default_rng(0).uniform(0, 2.5, 1000).astype(np.float32)
    parts = Counts(100)
    for part in np.array_split(numbers, 7):
        parts.add(part)
    expected = np.histogram(numbers.astype(np.float64), np.arange(252) / 100)[0]
    assert parts.steps.tolist() == expected[: len(parts.steps)].tolist()
    assert parts.steps.sum() == 1000


def test_a_number_on_an_edge_is_in_the_bar_that_begins_there():
    counts = Counts(100, [i / 100 for i in range(251)])
    assert counts.steps.tolist() == [1] * 251


def test_what_is_missing_is_in_no_bar():
    assert Counts(100, [None, float("nan"), 0.5]).steps.sum() == 1
    assert draw("clip", "CLIP-S", "", Counts(100, [None]), Counts(100)) is None


def test_bars_hold_every_number_and_fill_the_plot():
    numbers = np.random.default_rng(1).normal(0.7, 0.1, 10_000).clip(0)
    counts = Counts(100)
    counts.add(numbers)
    drawn = draw("clip", "CLIP-S", "", counts, counts)
    assert len(drawn.bars) <= MAX_BARS
    for bar in drawn.bars:
        assert bar.count == bar.shown == ((bar.low <= numbers) & (numbers < bar.high)).sum()
    assert sum(bar.count for bar in drawn.bars) == drawn.total == 10_000
    assert max(bar.height for bar in drawn.bars) == HEIGHT
    assert drawn.bars[-1].x + drawn.bars[-1].width <= WIDTH + 0.1
    assert all(text.endswith(("0", "5")) for _, text in drawn.ticks) and 2 <= len(drawn.ticks) <= 6


def test_lengths_are_told_in_words():
    few, many = Counts(1, [1, 2, 2]), Counts(1, [1, 60])
    assert [bar.label for bar in draw("length", "Caption length", " words", few, few).bars] == ["1 word", "2 words"]
    first, *_ = draw("length", "Caption length", " words", many, many).bars
    assert first.label == "0 to 4 words"
