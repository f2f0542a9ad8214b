"""One answer to where networks run, for training and evaluation alike."""

from __future__ import annotations

import pytest
import torch

from understudy.errors import ConfigError
from understudy.models.devices import resolve_device
from understudy.training.loop import create_accelerator


@pytest.mark.parametrize(("usable", "device", "expected"), [(False, "auto", "cpu"), (True, "auto", "cuda")])
def test_auto_is_the_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, usable: bool, device: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    assert resolve_device(device) == expected and resolve_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("cuda", "why"), [(None, "it is built without CUDA. Set runtime.device"), ("13.0", "the driver shows none. Set")]
)
def test_a_gpu_that_is_not_there_is_refused_and_not_replaced(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, why: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(ConfigError, match=f"is cuda, but PyTorch .* can use no GPU here: {why}"):
        create_accelerator("fp32", "cuda")
    with pytest.raises(ConfigError, match="is 'tpu'; choose auto, cpu or cuda"):
        resolve_device("tpu")
