import pytest

from recap_ray.caption_index.layout import Layout, choose_layout, code_bytes
from recap_ray.errors import UserError

GIB = 2**30


@pytest.mark.parametrize(
    "rows, dim, memory, expected",
    [
        (500_000, 512, 8 * GIB, Layout("flat")),
        (1_000_000, 512, 8 * GIB, Layout("ivf", 4_000)),
        (500_000, 512, 0.5 * GIB, Layout("ivfpq", 2_828)),
        (100_000_000, 512, 256 * GIB, Layout("ivf", 40_000)),
        (100_000_000, 512, 128 * GIB, Layout("ivfpq", 40_000)),
    ],
)
def test_auto_is_exact_while_that_is_cheap_and_compressed_where_memory_is_short(rows, dim, memory, expected):
    layout, reason = choose_layout("auto", rows, dim, memory)
    assert layout == expected and "G" in reason


def test_a_list_has_vectors_enough_to_be_trained_on():
    assert choose_layout("ivf", 400, 128, 0)[0] == Layout("ivf", 10)
    assert choose_layout("flat", 1, 128, 0)[0] == Layout("flat")


@pytest.mark.parametrize("kind, rows, least", [("ivf", 38, "39"), ("ivfpq", 9_983, "9,984")])
def test_too_few_to_train_on_are_told(kind, rows, least):
    with pytest.raises(UserError, match=f"--index-type {kind}: {rows:,} captions, expected at least {least} "):
        choose_layout(kind, rows, 128, 0)
    choose_layout(kind, rows + 1, 128, 0)


@pytest.mark.parametrize("dim, expected", [(512, 64), (640, 80), (100, 10), (7, 1), (36, 4)])
def test_a_code_has_a_byte_for_eight_dimensions_or_more(dim, expected):
    assert code_bytes(dim) == expected and dim % expected == 0
