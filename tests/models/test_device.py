import pytest
import torch

from recap_ray.errors import UserError
from recap_ray.models.device import Compute


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Compute("auto").choose_device() == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda: torch sees no CUDA GPU on this machine; use --device auto or"):
        Compute("cuda").choose_device()
