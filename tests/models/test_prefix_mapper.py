import pytest
import torch

from recap_ray.models.prefix_mapper import MAPPED_AT_ONCE, MapperShape, prefixes
from tests.models.published import linear_shapes, mlp_shapes, naive_prefix, transformer_shapes

MLP = MapperShape("mlp", embed_dim=37, width=30, prefix_length=3)
LINEAR = MapperShape("linear", embed_dim=37, width=30, prefix_length=3)
TRANSFORMER = MapperShape("transformer", embed_dim=37, width=30, prefix_length=3, clip_length=5, layers=2, heads=6)


@pytest.mark.parametrize(
    "shape, count",
    [
        (MapperShape("mlp", 512, 768, 10), 31_468_800),
        (MapperShape("transformer", 640, 768, 10, 10, 8, 8), 42_728_448),
        (MapperShape("transformer", 640, 768, 40, 40, 8, 8), 57_520_128),
    ],
)
def test_the_published_sizes_have_the_published_numbers_of_parameters(shape, count):
    with torch.device("meta"):
        assert sum(weight.numel() for weight in shape.build().parameters()) == count


@pytest.mark.parametrize(
    "shape, expected",
    [
        (MLP, mlp_shapes(37, 30, 3)),
        (LINEAR, linear_shapes(37, 30, 3)),
        (TRANSFORMER, transformer_shapes(37, 30, 3, 5, 2)),
    ],
    ids=["mlp", "linear", "transformer"],
)
def test_weights_have_the_published_names_and_the_prefix_is_that_of_the_paper(shape, expected):
    torch.manual_seed(0)
    mapper, embeddings = shape.build().eval(), torch.randn(7, 37)
    for weight in mapper.parameters():  # norms that do nothing would hide a mistake
        torch.nn.init.normal_(weight, std=0.3)
    state = mapper.state_dict()
    assert {name: tuple(weight.shape) for name, weight in state.items()} == expected
    found = prefixes(mapper, embeddings)
    published = {f"clip_project.{name}": weight for name, weight in state.items()}
    for embedding, prefix in zip(embeddings, found):
        naive = naive_prefix(published, embedding, 30, shape.heads or 1)
        assert prefix.shape == (3, 30) and torch.allclose(prefix, naive, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [MLP, LINEAR, TRANSFORMER, MapperShape("mlp", 128, 128, 8)], ids=["mlp", "linear", "transformer", "large"]
)
def test_a_prefix_does_not_depend_on_what_else_is_mapped(shape):
    torch.manual_seed(0)
    mapper, embeddings = shape.build().eval(), torch.randn(2 * MAPPED_AT_ONCE + 3, shape.embed_dim)
    whole = prefixes(mapper, embeddings)
    for order in ([0], [66, 3], list(range(5)), list(range(MAPPED_AT_ONCE)), list(range(len(whole)))[::-1]):
        assert torch.allclose(prefixes(mapper, embeddings[order]), whole[order], rtol=0, atol=1e-5)
