"""A tokenizer in GPT-2's own files, vocab.json and merges.txt, which the `tokenizers` library writes."""

import shutil

import pytest
from tokenizers import ByteLevelBPETokenizer

from recap_ray.errors import UserError
from recap_ray.models.device import Compute
from recap_ray.models.language_model import LanguageModel
from recap_ray.models.search import Decoding
from recap_ray.models.tiny import TINY_LANGUAGE_MODEL
from recap_ray.models.tokenizer import load_tokenizer
from recap_ray.models.trainable import new_trainable
from recap_ray.pipelines.decoder.import_checkpoint import load_matching_tokenizer

TEXT = "Similar images show: a red circle above a blue square. This image shows:"
SIZE = 300  # tokens: fewer than the tiny model has embeddings


@pytest.fixture
def plain(tmp_path):
    """A folder of vocab.json and merges.txt alone, and the tokenizer that wrote them."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([TEXT] * 3, vocab_size=SIZE, special_tokens=["<|endoftext|>"], show_progress=False)
    folder = tmp_path / "plain"
    folder.mkdir()
    tokenizer.save_model(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["merges.txt", "vocab.json"]
    return folder, tokenizer


@pytest.fixture(params=["config.json alone", "with a tokenizer_config.json"])
def model(plain, request):
    """The tiny model with these files in the place of its tokenizer.json."""
    folder, tokenizer = plain
    names = ["config.json", "generation_config.json", "model.safetensors"]
    for name in [*names, "tokenizer_config.json"][: None if "with" in request.param else -1]:
        shutil.copy(TINY_LANGUAGE_MODEL / name, folder)
    return folder, tokenizer


def test_a_folder_of_gpt2s_files_is_a_tokenizer(plain):
    folder, tokenizer = plain
    found = load_tokenizer(str(folder))
    assert found(TEXT)["input_ids"] == tokenizer.encode(TEXT).ids
    assert found.decode(tokenizer.encode(TEXT).ids) == TEXT
    assert found.eos_token_id == tokenizer.token_to_id("<|endoftext|>")
    assert len(load_matching_tokenizer(str(folder), tokenizer.get_vocab_size())) == tokenizer.get_vocab_size()


def test_a_model_with_gpt2s_files_captions_and_trains(model):
    folder, tokenizer = model
    loaded = LanguageModel(str(folder), Compute("cpu"))
    assert loaded.tokenizer(TEXT)["input_ids"] == tokenizer.encode(TEXT).ids
    assert loaded.tokenizer.truncation_side == "left"
    assert loaded.write([TEXT], ["a"], Decoding(candidates=1))[0][0]
    trained = new_trainable(str(folder), None, True, False, None, 0)[1]
    assert trained(TEXT)["input_ids"] == tokenizer.encode(TEXT).ids


def test_a_folder_without_a_tokenizer_is_refused_in_a_whole_sentence(plain):
    folder, _ = plain
    (folder / "merges.txt").unlink()
    with pytest.raises(UserError, match="hub: it has no tokenizer: expected tokenizer.json, or merges.txt$"):
        load_matching_tokenizer(str(folder), SIZE)
    (folder / "vocab.json").unlink()
    with pytest.raises(UserError, match="expected tokenizer.json, or vocab.json and merges.txt$"):
        load_matching_tokenizer(str(folder), SIZE)
