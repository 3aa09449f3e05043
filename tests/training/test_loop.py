import json

import numpy as np
import pytest
import torch
from transformers import get_scheduler

from recap_ray.models.prefix_mapper import MapperShape
from recap_ray.models.trainable import Batch, new_trainable
from recap_ray.training.batches import PrefixBatches, Texts
from recap_ray.training.examples import Examples
from recap_ray.training.loop import CHECKPOINT, Hyperparameters, Loop, learning_rate_share, load_best
from recap_ray.training.noise import Noise

SHAPE = MapperShape("mlp", 16, 128, 3)
CAPTIONS = [f"a {size} {colour} {kind}" for size in ("big", "small") for colour in ("red", "blue") for kind in
            ("star", "circle", "square", "ring with a dot in the middle", "box")]  # fmt: skip


@pytest.fixture
def trainable():
    return new_trainable("tiny", SHAPE, tuned=True, from_scratch=False, dropout=None, seed=0)


def hyperparameters(**changes):
    sizes = {"epochs": 3, "batch_size": 6, "micro_batch": 6, "warmup_steps": 2}
    given = {"learning_rate": 1e-3, "weight_decay": 0.0, "seed": 0, "bfloat16": False}
    return Hyperparameters(**{**sizes, **given, **changes})


def loop(folder, trainable, **changes):
    model, tokenizer = trainable
    embeddings = np.random.default_rng(0).standard_normal((len(CAPTIONS), 16)).astype(np.float32)
    rows = np.arange(len(CAPTIONS))
    examples = Examples(embeddings, rows, CAPTIONS, CAPTIONS, rows)
    batches = PrefixBatches(examples, Texts(CAPTIONS, tokenizer, 40, 300), Noise("gaussian", 0.01))
    numbers = examples.split(4)
    return Loop(model, batches, numbers, hyperparameters(**changes), folder, torch.device("cpu"), tokenizer.decode)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}, [
        line["validation_loss"] for line in lines if "epoch" in line
    ]


def fresh():
    return new_trainable("tiny", SHAPE, tuned=True, from_scratch=False, dropout=None, seed=0)


def test_the_loss_is_that_of_transformers_summed_over_the_caption(trainable):
    model, tokenizer = trainable
    model.eval()
    rows = tokenizer(["a red star below a circle.", "blue."])["input_ids"]
    batch = Texts([], tokenizer, 40, 300).batch([([], row) for row in rows], np.ones((2, 16), np.float32))
    expected = 0.0
    for row in rows:  # one by one, without padding
        prefix = model.mapper(torch.ones(1, 16))
        inputs = torch.cat([prefix, model.language_model.get_input_embeddings()(torch.tensor([row]))], 1)
        labels = torch.tensor([[-100] * 3 + row])
        expected += model.language_model(inputs_embeds=inputs, labels=labels).loss.item() * len(row)
    assert model(batch).item() == pytest.approx(expected, rel=1e-5)


def test_without_a_mapper_the_first_token_is_not_foretold(trainable):
    model, tokenizer = new_trainable("tiny", None, tuned=True, from_scratch=False, dropout=None, seed=0)
    model.eval()
    prompt, caption = tokenizer("Similar images show: a star.")["input_ids"], tokenizer(" a ring.")["input_ids"]
    batch = Texts([], tokenizer, 40, 300).batch([(prompt, caption)], None, learn_prompt=True)
    whole = torch.tensor([prompt + caption])
    expected = float(model.language_model(whole, labels=whole).loss) * (whole.shape[1] - 1)
    assert model(batch).item() == pytest.approx(expected, rel=1e-5)


def test_a_frozen_language_model_does_not_change_and_has_no_dropout(tmp_path):
    frozen = new_trainable("tiny", SHAPE, tuned=False, from_scratch=False, dropout=0.5, seed=0)
    before = {name: weight.clone() for name, weight in frozen[0].language_model.state_dict().items()}
    frozen[0].train()
    assert not any(module.training for module in frozen[0].language_model.modules())
    loop(tmp_path, frozen, epochs=1).run()
    assert all(torch.equal(weight, before[name]) for name, weight in frozen[0].language_model.state_dict().items())
    mapper = fresh()[0].mapper.state_dict()
    assert not any(torch.equal(weight, mapper[name]) for name, weight in frozen[0].mapper.state_dict().items())


def test_pieces_of_a_batch_give_the_losses_of_the_whole(tmp_path, trainable):
    for folder, size, made in (("whole", 6, trainable), ("pieces", 1, fresh())):
        (tmp_path / folder).mkdir()
        loop(tmp_path / folder, made, micro_batch=size).run()
    whole, pieces = losses(tmp_path / "whole")[0], losses(tmp_path / "pieces")[0]
    assert whole.keys() == pieces.keys() and len(whole) == 9
    assert all(pieces[step] == pytest.approx(loss, abs=1e-4) for step, loss in whole.items())
    assert whole[9] < whole[1]  # it learns


def test_a_loop_that_was_stopped_goes_on_along_the_same_losses(tmp_path, trainable, monkeypatch):
    for folder in ("unbroken", "broken"):
        (tmp_path / folder).mkdir()
    loop(tmp_path / "unbroken", trainable).run()
    broken = loop(tmp_path / "broken", fresh())
    monkeypatch.setattr("recap_ray.training.loop.CHECKPOINT_SECONDS", -1.0)  # after every step
    step = broken._step

    def dying(model, numbers):
        if broken.state.step == 5:
            raise KeyboardInterrupt
        step(model, numbers)

    monkeypatch.setattr(broken, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    assert (tmp_path / "broken" / CHECKPOINT).exists()
    resumed = fresh()
    loop(tmp_path / "broken", resumed).run()
    for found, expected in zip(losses(tmp_path / "broken"), losses(tmp_path / "unbroken")):
        assert found == pytest.approx(expected, abs=1e-5)
    for made in (trainable, resumed):
        load_best(made[0], tmp_path / ("unbroken" if made is trainable else "broken"))
    for name, weight in trainable[0].state_dict().items():
        assert torch.allclose(weight, resumed[0].state_dict()[name], atol=1e-6), name


def test_the_learning_rate_is_that_of_transformers_linear_schedule():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=30)
    for step in range(30):
        assert learning_rate_share(step, 0, 30) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    rising = [learning_rate_share(step, 4, 30) for step in range(4)]
    assert rising == pytest.approx([0.2, 0.4, 0.6, 0.8])  # never a step that learns nothing
    assert learning_rate_share(4, 4, 30) == 1


def test_a_batch_is_cut_by_rows():
    begins, loss_mask = torch.zeros(3, dtype=torch.long), torch.ones(3, 2, dtype=torch.bool)
    batch = Batch(None, torch.arange(6).view(3, 2), begins, loss_mask)
    assert batch[slice(1, 3)].tokens.tolist() == [[2, 3], [4, 5]]
    assert len(batch[slice(2, 2)]) == 0
