import pytest

from recap_ray.report.scatter import SIDE, draw


def test_equal_numbers_lie_on_the_diagonal_and_higher_ones_of_b_above_it():
    same, higher = sorted(draw([(0.5, 0.5), (0.4, 0.6)]).dots, key=lambda dot: dot.rank)
    assert same.x + same.y == pytest.approx(SIDE)
    assert higher.x + higher.y < SIDE  # y grows downward
    assert (same.side, higher.side) == ("tie", "b")


def test_dots_are_within_the_plot_and_come_from_left_to_right():
    drawn = draw([(0.71, 0.2), (0.33, 0.9), (None, 0.5), (0.5, None), (0.5, 0.4)])
    assert [dot.rank for dot in drawn.dots] == [1, 4, 0]
    assert all(0 <= dot.x <= SIDE and 0 <= dot.y <= SIDE for dot in drawn.dots)
    assert drawn.ticks[0] == (0.0, "0.20") and drawn.ticks[-1] == (SIDE, "1.00")


def test_one_number_alone_still_has_an_axis():
    assert len(draw([(0.5, 0.5)]).ticks) >= 2


def test_no_number_is_no_plot():
    assert draw([(None, 0.5)]) is None
