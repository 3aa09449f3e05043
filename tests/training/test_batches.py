import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from recap_ray.errors import UserError
from recap_ray.models.tiny import TINY_LANGUAGE_MODEL
from recap_ray.training.batches import PrefixBatches, PromptBatches, Texts
from recap_ray.training.examples import Examples, epoch_batches, own_share
from recap_ray.training.noise import Noise

CAPTIONS = ["a red circle", "one red disc", "a blue star.", "two green boxes", "a red circle", "a pink ring"]
GROUPS = np.array([0, 0, 1, 2, 3, 4])  # the first two tell of one image; the fifth repeats words of another
PROMPT = "Similar images show: {neighbours} This image shows:"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_LANGUAGE_MODEL)


@pytest.fixture(scope="module")
def examples():
    embeddings = np.random.default_rng(0).standard_normal((len(CAPTIONS), 8)).astype(np.float32)
    embeddings[4] = embeddings[0] + 0.01  # equal words lie at the same place
    return Examples(embeddings, GROUPS, [f"image {i}" for i in range(5)], CAPTIONS, np.arange(len(CAPTIONS)))


def texts(tokenizer, max_tokens=40, positions=320):
    return Texts(CAPTIONS, tokenizer, max_tokens, positions)


def recap(examples, tokenizer, **changes):
    given = {"noise": Noise(), "neighbours": 2, "datastore": None, "learn_prompt": False, **changes}
    return PromptBatches(
        examples,
        texts(tokenizer),
        training=np.arange(len(CAPTIONS)),
        device=torch.device("cpu"),
        prompt=PROMPT,
        **given,
    )


def told(tokenizer, batch, row, what):
    return tokenizer.decode(batch.tokens[row][what[row]])


def test_a_caption_and_its_end_are_foretold_and_no_padding(examples, tokenizer):
    batch = PrefixBatches(examples, texts(tokenizer), Noise()).make(np.array([3, 2]), slice(0, 2), None)
    for row, number in enumerate((3, 2)):
        assert told(tokenizer, batch, row, batch.loss_mask) == CAPTIONS[number] + tokenizer.eos_token
    assert batch.embeddings.norm(dim=1).tolist() == pytest.approx([1, 1])
    assert (~batch.loss_mask).any()  # they differ in length, so that one was padded


def test_a_caption_that_is_too_long_is_cut_and_does_not_end_there(examples, tokenizer):
    batch = PrefixBatches(examples, texts(tokenizer, max_tokens=2), None).make(np.array([3]), slice(0, 1), None)
    assert batch.tokens.shape == (1, 2)
    assert tokenizer.eos_token_id not in batch.tokens


def test_an_embedding_is_as_the_model_gave_it_where_nothing_is_to_be_done_with_it(examples, tokenizer):
    batch = PrefixBatches(examples, texts(tokenizer), None).make(np.array([1]), slice(0, 1), None)
    assert torch.equal(batch.embeddings[0], torch.from_numpy(examples.embeddings[1]))


def test_a_prompt_holds_the_nearest_captions_of_other_images_none_twice(examples, tokenizer):
    batch = recap(examples, tokenizer, neighbours=4).make(np.array([3] * 40), slice(0, 40), np.random.default_rng(0))
    prompts = [tokenizer.decode(batch.tokens[i, : batch.begins[i]]) for i in range(40)]
    unit = examples.embeddings / np.linalg.norm(examples.embeddings, axis=1, keepdims=True)
    order = [i for i in np.argsort(-(unit @ unit[3])) if GROUPS[i] != GROUPS[3]]
    nearest = list(dict.fromkeys(CAPTIONS[i] for i in order))[:4]
    assert PROMPT.replace("{neighbours}", " ".join(nearest)) in prompts
    # Half of them have fewer, the nearest of them.
    expected = {PROMPT.replace("{neighbours}", " ".join(nearest[:count])) for count in range(1, 5)}
    assert set(prompts) == expected
    assert told(tokenizer, batch, 0, batch.loss_mask) == f" {CAPTIONS[3]}{tokenizer.eos_token}"


def test_the_query_is_the_mean_of_the_captions_of_an_image(examples, tokenizer):
    batches = recap(examples, tokenizer)
    unit = examples.embeddings / np.linalg.norm(examples.embeddings, axis=1, keepdims=True)
    assert np.allclose(batches.queries[0], unit[0] + unit[1], atol=1e-6)


def test_a_datastore_of_its_own_size_is_drawn_for_each_step(examples, tokenizer):
    batches = recap(examples, tokenizer, datastore=2, neighbours=1)
    prompts = set()
    for step in range(40):
        batch = batches.make(np.array([3]), slice(0, 1), np.random.default_rng(step))
        prompts.add(tokenizer.decode(batch.tokens[0, : batch.begins[0]]))
    assert len(prompts) > 2  # the nearest caption of all is not always there


def test_with_learn_prompt_the_prompt_is_foretold_too(examples, tokenizer):
    batch = recap(examples, tokenizer, learn_prompt=True).make(np.array([3]), slice(0, 1), np.random.default_rng(0))
    assert batch.loss_mask.all() and batch.begins[0] > 0


def test_a_prompt_that_is_too_long_loses_its_beginning(tokenizer):
    made = texts(tokenizer, positions=10).batch([(list(range(20)), [7, 8])], None)
    assert made.tokens.tolist() == [[*range(12, 20), 7, 8]]


@given(st.integers(0, 50), st.integers(1, 7))
def test_workers_share_a_batch_without_gap_or_overlap(rows, workers):
    batch = np.arange(rows)
    shares = [batch[own_share(batch, rank, workers)] for rank in range(workers)]
    assert np.array_equal(np.concatenate(shares), batch)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_every_epoch_deals_each_caption_once_in_an_order_of_its_own():
    numbers = np.arange(10, 33)
    epochs = [np.concatenate(list(epoch_batches(numbers, 5, 0, epoch))) for epoch in (0, 1)]
    assert all(sorted(epoch) == numbers.tolist() for epoch in epochs)
    assert not np.array_equal(*epochs)
    assert np.array_equal(epochs[0], np.concatenate(list(epoch_batches(numbers, 5, 0, 0))))


def test_no_image_is_on_both_sides_of_the_split(examples):
    training, validation = examples.split(1)
    assert set(GROUPS[training]).isdisjoint(GROUPS[validation])
    assert sorted([*training, *validation]) == list(range(len(CAPTIONS)))
    assert len(set(GROUPS[validation])) == 1


def test_too_few_images_are_told(examples):
    few = Examples(examples.embeddings[:2], GROUPS[:2], ["image 0"], CAPTIONS[:2], np.arange(2))
    with pytest.raises(UserError, match="too few to train on: expected at least 5"):
        few.split(100)
