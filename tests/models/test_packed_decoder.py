"""Layers computed by hand: their derivatives are right, and Hugging Face's own are called where they must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.families import random_policy

from understudy.models import packed_decoder
from understudy.models.language_model import LanguageModel
from understudy.models.packed_decoder import _RMSNorm, _Rotation, reading

PROMPTS, RESPONSES = [[5, 6, 7], [8], [5, 6, 7]], [[11, 12], [13, 14, 15, 16, 17], [18]]
FAMILIES = ["llama", "llama_untied", "qwen2", "qwen3"]


def _random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 6)])
def test_the_gradient_of_a_norm_is_its_derivative(shape: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(
        lambda value, weight: _RMSNorm.apply(value, weight, 1e-3), (_random(*shape), _random(6))
    )


def test_the_gradient_of_a_rotation_is_its_derivative() -> None:
    angle = torch.linspace(0.0, 3.0, 12, dtype=torch.float64).view(4, 1, 3)
    assert torch.autograd.gradcheck(lambda value: _Rotation.apply(value, angle.cos(), angle.sin()), (_random(4, 2, 6),))


def _told(policy: LanguageModel, monkeypatch: pytest.MonkeyPatch, whole: bool = False) -> tuple[torch.Tensor, int]:
    """Hidden states of a batch, or the whole model's logits, and how many of Hugging Face's layers were called."""
    batch, calls = policy.batch(PROMPTS, RESPONSES), []
    called = policy.model if whole else policy.model.base_model
    kind = type(policy.model.base_model.layers[1])
    before = kind.forward

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(self)
        return before(self, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "forward", forward)
        assert batch.packed is not None
        with reading(batch.packed, called) as arguments:
            found = called(**arguments, use_cache=False, output_hidden_states=False)
        assert "forward" not in vars(policy.model.base_model)
        return found[0].detach(), len(calls)


@pytest.mark.parametrize("whole", [False, True], ids=["backbone", "called as a whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_layer_is_called_and_what_comes_out_is_theirs(
    family: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = random_policy(family)
    by_hand, num_calls = _told(policy, monkeypatch, whole)
    assert num_calls == 0
    monkeypatch.setattr(packed_decoder, "_is_computed_here", lambda _: False)
    by_layers, num_calls = _told(policy, monkeypatch, whole)
    assert num_calls == 2
    torch.testing.assert_close(by_hand, by_layers, atol=2e-5, rtol=1e-5)


def _hooked(name: str) -> Any:
    return lambda policy: policy.model.get_submodule(name).register_forward_hook(lambda *_: None)


def _replaced(policy: LanguageModel) -> None:
    norm = policy.model.model.norm
    norm.forward = type(norm).forward.__get__(norm)


def _wrapped(policy: LanguageModel) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    layers = policy.model.model.layers
    layers[0] = checkpoint_wrapper(layers[0])


WAITING: dict[str, Any] = {
    "a hook on a layer": _hooked("model.layers.1"),
    "a hook on attention": _hooked("model.layers.0.self_attn"),
    "a hook on a norm": _hooked("model.layers.0.input_layernorm"),
    "a hook on the whole": _hooked("model"),
    "a forward of its own": _replaced,
    "a wrapper": _wrapped,
    "bfloat16": lambda policy: policy.model.to(torch.bfloat16),
}


@pytest.mark.parametrize("name", WAITING)
def test_layers_are_called_where_something_waits_for_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = random_policy("llama")
    WAITING[name](policy)
    assert _told(policy, monkeypatch)[1] == 2


def test_layers_that_the_config_leaves_out_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = random_policy("llama")
    whole = _told(policy, monkeypatch)[0]
    policy.model.config.num_hidden_layers = 1
    by_hand = _told(policy, monkeypatch)[0]
    monkeypatch.setattr(packed_decoder, "_is_computed_here", lambda _: False)
    by_layers, num_calls = _told(policy, monkeypatch)
    assert num_calls == 1 and (whole - by_hand).abs().max() > 0.1
    torch.testing.assert_close(by_hand, by_layers, atol=2e-5, rtol=1e-5)


def test_layers_are_called_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert _told(random_policy("llama"), monkeypatch)[1] == 2
