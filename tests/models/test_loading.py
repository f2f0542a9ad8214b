"""What is refused of a model: code of its own, adapters that a save would lose, answers that depend on padding."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest
import torch
from models.families import random_policy
from support.small_policy import write_small_policy

from understudy.config import LoraConfig, ModelConfig
from understudy.errors import ConfigError
from understudy.models import batching_check
from understudy.models.language_model import LanguageModel
from understudy.models.loading import create_policy, load_policy, with_lora

PROMPTS, RESPONSES = [[5, 9, 12], [6]], [[8, 9, 10], [10]]


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_small_policy(tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": names}))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda question="": asked.append(question) or "y")
    pretrained = ModelConfig(
        init="pretrained", scratch=None, path=str(folder), gguf_file=None, revision=None,
        lora=None, precision="fp32",
    )  # fmt: skip
    said = "comes with code of its own, and such code is never run. Name a model whose architecture transformers has"
    for load in (lambda: load_policy(folder), lambda: create_policy(pretrained, (), seed=0)):
        with pytest.raises(ConfigError, match=said):
            load()
    assert not asked and not (tmp_path / "ran").exists()


def adapters(*modules: str) -> LoraConfig:
    return LoraConfig(rank=4, alpha=8, dropout=0.0, target_modules=modules)


@pytest.mark.parametrize(
    ("family", "modules", "named"),
    [
        ("llama", ("q_proj", "embed_tokens"), "embed_tokens"),
        ("llama", ("q_proj", "lm_head"), "lm_head"),
        ("llama", ("lm_head", "embed_tokens"), "embed_tokens and lm_head"),
        ("gpt2", ("c_attn", "wte"), "wte"),
    ],
)
def test_adapters_on_weights_that_two_layers_share_are_refused_by_name(
    family: str, modules: tuple[str, ...], named: str
) -> None:
    said = f"model.lora.target_modules puts adapters on {named}, but .* share one weight .*; leave {named} out"
    with pytest.raises(ConfigError, match=said):
        with_lora(random_policy(family), adapters(*modules), seed=0)


@pytest.mark.parametrize(
    ("family", "modules"), [("llama", ("q_proj", "o_proj")), ("llama_untied", ("q_proj", "embed_tokens", "lm_head"))]
)
def test_a_saved_policy_gives_the_log_probabilities_of_the_one_that_was_trained(
    family: str, modules: tuple[str, ...], tmp_path: Path
) -> None:
    def logps(policy: LanguageModel) -> torch.Tensor:
        return policy.response_logps(policy.batch(PROMPTS, RESPONSES)).detach()

    plain = random_policy(family)
    before_BT, policy = logps(plain), with_lora(plain, adapters(*modules), seed=0)
    with torch.no_grad():
        for name, value in policy.model.named_parameters():
            if "lora" in name:
                value.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    policy.save(tmp_path)
    assert (logps(policy) - before_BT).abs().max() > 0.1
    torch.testing.assert_close(logps(load_policy(tmp_path)), logps(policy), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("recurrent_gemma", "recurrent_gemma.* no cache"),
        ("rwkv", "rwkv.* no cache"),
        ("mamba", "mamba.* no cache"),
        ("openai_gpt", "openai-gpt.* no cache"),
        ("minimax", "minimax.* own"),
        ("roberta", r"'roberta'.* differ by \d\.\d+ nats .allowed: 0.01"),
        ("bart", r"'bart'.* differ by \d\.\d+ nats .allowed: 0.01"),
    ],
)
def test_a_model_that_answers_otherwise_in_a_batch_than_alone_is_refused_by_its_type(
    family: str, said: str, tmp_path: Path
) -> None:
    random_policy(family).save(tmp_path)
    with pytest.raises(ConfigError, match=said) as refused:
        load_policy(tmp_path)
    assert "Name a model of another type" in str(refused.value)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "mistral_window", "opt", "llama4", "mpt", "lfm2", "olmo_hybrid"])
def test_a_model_that_answers_in_a_batch_as_alone_is_loaded(family: str, tmp_path: Path) -> None:
    policy = random_policy(family)
    policy.save(tmp_path)
    loaded = load_policy(tmp_path)
    batch = policy.batch(PROMPTS, RESPONSES)
    with torch.no_grad():
        torch.testing.assert_close(loaded.response_logps(batch), policy.response_logps(batch))
    assert not loaded.model.training


def test_families_whose_forward_pass_is_our_own_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_policy("qwen3").save(tmp_path)
    monkeypatch.setattr(batching_check, "generate", lambda *_: pytest.fail("asked"))
    assert load_policy(tmp_path).packs
