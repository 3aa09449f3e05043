import pytest
from transformers import GPT2Config, T5Config

from recap_ray.errors import UserError
from recap_ray.models.trainable import width_of


def test_only_a_causal_model_has_a_width_to_train(tmp_path):
    GPT2Config(n_embd=48).save_pretrained(tmp_path / "gpt2")
    assert width_of(str(tmp_path / "gpt2")) == 48
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(UserError, match="--language-model .*t5 is no causal model: train GPT-2 or another one like it"):
        width_of(str(tmp_path / "t5"))
