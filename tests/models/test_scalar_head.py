from __future__ import annotations

import pytest
import torch
from models.families import random_policy

from understudy.config import LoraConfig
from understudy.errors import ConfigError
from understudy.models.loading import with_lora
from understudy.models.scalar_head import ScalarHead

LORA = LoraConfig(rank=2, alpha=4, dropout=0.0, target_modules="all-linear")


def test_head_on_a_policy_with_adapters_copies_the_backbone_with_them_folded_in() -> None:
    policy = with_lora(random_policy("llama"), LORA, seed=3)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    batch = policy.batch([[5, 6], [7]], [[8, 9], [10]])
    head = ScalarHead.copied_from(policy, num_outputs=1, dropout=0.0)
    assert not [name for name, _ in head.named_parameters() if "lora" in name]
    assert all(parameter.requires_grad for parameter in head.parameters())
    arguments = policy.forward_arguments(batch.attention_BS)
    with torch.no_grad():
        hidden_BSH = head.backbone(input_ids=batch.ids_BS, use_cache=False, **arguments).last_hidden_state
        adapted = policy.model(input_ids=batch.ids_BS, output_hidden_states=True, **arguments).hidden_states[-1]
    seen = batch.attention_BS.bool()
    torch.testing.assert_close(hidden_BSH[seen], adapted[seen], atol=1e-5, rtol=1e-5)
    # The policy keeps its adapters and is not the copy.
    assert hasattr(policy.model, "disable_adapter")
    assert not {id(parameter) for parameter in head.parameters()} & {
        id(parameter) for parameter in policy.model.parameters()
    }


def test_dropout_is_that_of_the_whole_batch_whoever_runs_the_rows() -> None:
    policy = random_policy("llama")
    head = ScalarHead.copied_from(policy, num_outputs=1, dropout=0.5).train()
    torch.nn.init.normal_(head.head.weight)
    batch = policy.batch([[5, 6], [7], [8, 9]], [[8, 9, 10], [10], [11, 12]])
    torch.manual_seed(1)
    whole = head(batch)
    for rows in (slice(0, 1), slice(1, 3)):
        torch.manual_seed(1)
        torch.testing.assert_close(head(batch.part(rows)), whole[rows], atol=1e-5, rtol=1e-5)
    torch.manual_seed(2)
    assert not torch.allclose(head(batch), whole)


@pytest.mark.parametrize(("family", "named"), [("llama4", "llama4_text"), ("opt_projected", "opt")])
def test_a_model_whose_trunk_cannot_be_taken_out_is_refused_with_what_can_be_done(family: str, named: str) -> None:
    said = f"the trunk of the policy, and of a model of type '{named}' .* to shared_trunk, ngrams or own; for a value"
    with pytest.raises(ConfigError, match=said):
        ScalarHead.copied_from(random_policy(family), num_outputs=1, dropout=0.0)
    with pytest.raises(ConfigError, match=said):
        ScalarHead.shared_with(random_policy(family), rank=2, num_outputs=1, dropout=0.0)


def test_a_trunk_that_the_model_does_not_call_itself_is_read_like_any() -> None:
    policy = random_policy("opt")
    head = ScalarHead.copied_from(policy, num_outputs=1, dropout=0.0).eval()
    torch.nn.init.normal_(head.head.weight)
    prompts, responses = [[5, 6, 7], [8]], [[9, 10], [11, 12]]
    whole = head(policy.batch(prompts, responses))
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        torch.testing.assert_close(whole[row], head(policy.batch([prompt], [response]))[0], atol=1e-5, rtol=1e-5)
