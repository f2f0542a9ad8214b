from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.families import random_policy
from safetensors.torch import load_file, save_file

from understudy.config import LoraConfig
from understudy.errors import IntegrityError
from understudy.models.discriminator import load_discriminator
from understudy.models.language_model import LanguageModel, TokenBatch
from understudy.models.loading import with_lora
from understudy.models.trunk_reader import TrunkReader, load_trunk_reader

PROMPTS, RESPONSES = [[5, 6], [7], [5, 6]], [[8, 9, 10], [10], [11, 12]]


def _reader(policy: LanguageModel, dropout: float = 0.0) -> TrunkReader:
    torch.manual_seed(0)
    reader = TrunkReader(policy, num_outputs=2, num_layers=1, width=32, dropout=dropout)
    torch.nn.init.normal_(reader.head.weight)
    return reader


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # with and without the packed layout
def test_the_reference_is_read_as_transformers_computes_it(family: str) -> None:
    policy = random_policy(family)
    assert (policy.batch(PROMPTS, RESPONSES).packed is not None) == (family == "llama")
    seen = policy.read(policy.batch(PROMPTS, RESPONSES))
    assert seen.hidden_BUH.shape == (3, 4, policy.hidden_size) and seen.logp_BT.shape == (3, 3)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        with torch.no_grad():
            output = policy.model(torch.tensor([prompt + response]), output_hidden_states=True)
        hidden_SH, logp_SV = output.hidden_states[-1][0], output.logits[0].log_softmax(-1)
        num, first = len(response), len(prompt) - 1
        torch.testing.assert_close(seen.hidden_BUH[row, : num + 1], hidden_SH[first:], atol=1e-5, rtol=1e-5)
        expected_t = logp_SV[first : first + num].gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(seen.logp_BT[row, :num], expected_t, atol=1e-5, rtol=1e-5)
        assert float(seen.hidden_BUH[row, num + 1 :].abs().sum() + seen.logp_BT[row, num:].abs().sum()) == 0


@pytest.mark.parametrize("family", ["opt", "opt_projected", "llama4"])
def test_what_feeds_the_output_layer_is_read_whatever_the_model_calls(family: str) -> None:
    policy = random_policy(family)
    head = policy.model.get_output_embeddings()
    seen = policy.read(policy.batch(PROMPTS, RESPONSES))
    assert policy.hidden_size == head.in_features == (16 if family == "opt_projected" else 32)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        found: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs, found=found: found.append(inputs[0]))
        with torch.no_grad():
            logp_SV = policy.model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        hook.remove()
        num, first = len(response), len(prompt) - 1
        torch.testing.assert_close(seen.hidden_BUH[row, : num + 1], found[0][0, first:], atol=1e-5, rtol=1e-5)
        expected_t = logp_SV[first : first + num].gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(seen.logp_BT[row, :num], expected_t, atol=1e-5, rtol=1e-5)
    assert _reader(policy)(policy.batch(PROMPTS, RESPONSES)).shape == (3, 3, 2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_of_prompts_and_hidden_states_of_other_layers_are_not_made(family: str) -> None:
    policy = random_policy(family)
    batch = policy.batch([[5] * 20], [[8, 9]])
    batch = TokenBatch(batch.ids_BS, batch.attention_BS, batch.response_BT, batch.mask_BT)  # not packed
    columns: list[int] = []
    hook = policy.model.get_output_embeddings().register_forward_hook(
        lambda _, __, logits: columns.append(logits.shape[1])
    )
    policy.read(batch)
    hook.remove()
    assert columns == [3]  # one before each token, and the last, whose hidden state is read


def test_a_position_is_judged_by_what_stands_before_it_and_a_row_by_itself_alone() -> None:
    policy = random_policy("llama")
    reader = _reader(policy).eval()
    whole = reader(policy.batch(PROMPTS, RESPONSES))
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        alone = reader(policy.batch([prompt], [response]))[0]
        torch.testing.assert_close(whole[row, : len(response)], alone, atol=1e-5, rtol=1e-5)
        for end in range(1, len(response)):
            prefix = reader(policy.batch([prompt], [response[:end]]))[0]
            torch.testing.assert_close(alone[:end], prefix, atol=1e-5, rtol=1e-5)
    other = reader(policy.batch([[5, 7]], [[8, 9, 10]]))[0]
    assert float((whole[0] - other).detach().abs().min()) > 1e-4


def test_it_starts_without_a_preference_and_trains_nothing_of_the_reference() -> None:
    policy = random_policy("llama")
    policy.model.requires_grad_(False)
    reader = TrunkReader(policy, num_outputs=1, num_layers=2, width=None, dropout=0.0)
    assert reader.shape["width"] % 32 == 0 and reader.shape["width"] >= policy.hidden_size
    batch = policy.batch(PROMPTS, RESPONSES)
    output = reader(batch)
    assert float(output.detach().abs().max()) == 0
    output[..., 0].sum().backward()
    assert not {id(p) for p in reader.parameters()} & {id(p) for p in policy.model.parameters()}
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    assert float(reader.head.bias.grad) == batch.mask_BT.numel()


def test_adapters_are_not_read_and_training_mode_is_left_as_it_was() -> None:
    plain = random_policy("llama")
    batch = plain.batch(PROMPTS, RESPONSES)
    expected = plain.read(batch)
    adapted = with_lora(
        random_policy("llama"), LoraConfig(rank=2, alpha=4, dropout=0.5, target_modules="all-linear"), 1
    )
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.model.train()
    assert not torch.allclose(adapted.response_logps(batch), plain.response_logps(batch), atol=1e-3)
    read = adapted.read(batch)
    torch.testing.assert_close((read.hidden_BUH, read.logp_BT), (expected.hidden_BUH, expected.logp_BT))
    assert adapted.model.training


def test_dropout_is_that_of_the_whole_batch_whoever_runs_the_rows() -> None:
    policy = random_policy("llama")
    reader = _reader(policy, dropout=0.5).train()
    batch = policy.batch(PROMPTS, RESPONSES)
    torch.manual_seed(1)
    whole = reader(batch)
    for rows in (slice(0, 1), slice(1, 3)):
        torch.manual_seed(1)
        torch.testing.assert_close(reader(batch.part(rows)), whole[rows], atol=1e-5, rtol=1e-5)


def test_what_is_known_already_is_not_read_again_and_travels_with_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = random_policy("llama")
    reader, batch = _reader(policy).eval(), policy.batch(PROMPTS, RESPONSES)
    expected = reader(batch)
    known = TokenBatch(batch.ids_BS, batch.attention_BS, batch.response_BT, batch.mask_BT, seen=policy.read(batch))
    monkeypatch.setattr(policy, "read", lambda batch: pytest.fail("read again"))
    torch.testing.assert_close(reader(known), expected)
    torch.testing.assert_close(reader(known.part(slice(1, 3))), expected[1:])


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    policy = random_policy("llama")
    _reader(policy).save(tmp_path, {"level": "sequence"})
    loaded = load_discriminator(tmp_path, policy)
    # Where it reads is where its reference is.
    (elsewhere,) = load_trunk_reader(tmp_path, torch.device("meta"))._reference
    assert elsewhere.device.type == "meta"
    batch = policy.batch(PROMPTS, RESPONSES)
    assert torch.equal(loaded.eval()(batch), _reader(policy).eval()(batch))
    tensors = load_file(tmp_path / "reader.safetensors")
    save_file(tensors | {"head.weight": torch.zeros(1, 32)}, tmp_path / "reader.safetensors")
    with pytest.raises(IntegrityError, match=r"does not fit description.json: head.weight. Run the align step again"):
        load_discriminator(tmp_path, policy)
    save_file({name: value for name, value in tensors.items() if name != "norm.bias"}, tmp_path / "reader.safetensors")
    with pytest.raises(IntegrityError, match="norm.bias"):
        load_discriminator(tmp_path, policy)
