"""The packed forward computes what the padded one computes, gradients included."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from models.families import random_policy
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from understudy.config import LoraConfig
from understudy.models import logps, packed_decoder, packing, portions
from understudy.models.language_model import LanguageModel, TokenBatch
from understudy.models.loading import with_lora
from understudy.models.scalar_head import ScalarHead

PACKING = ["llama", "llama_untied", "qwen2", "qwen3"]
PROMPTS = [[5, 6, 7], [8], [5, 6, 7], [9, 10], [5, 6, 7], [8]]
RESPONSES = [[11, 12], [13, 14, 15, 16, 17], [18], [19, 20, 21], [11, 12, 22, 23], [13, 14, 15, 16, 17]]
# No prompt of more than one response, as in SFT; a row that comes twice is one.
ROWS = [1, 3, 0, 5]
BATCHES = {
    "shared prompts": (PROMPTS, RESPONSES, packing.SharedPrompts),
    "prompts of their own": ([PROMPTS[row] for row in ROWS], [RESPONSES[row] for row in ROWS], packing.WholeRows),
}


def _both(policy: LanguageModel, batch: str = "shared prompts") -> tuple[TokenBatch, TokenBatch]:
    prompts, responses, layout = BATCHES[batch]
    packed = policy.batch(prompts, responses)
    assert packed.packed is not None and type(packed.packed.rectangles) is layout
    return packed, dataclasses.replace(packed, packed=None)


def _gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}
    module.zero_grad()
    return found


@pytest.mark.parametrize("batch_name", BATCHES)
@pytest.mark.parametrize("family", PACKING)
def test_packed_log_probabilities_and_gradients_equal_padded_ones(family: str, batch_name: str) -> None:
    policy = random_policy(family)
    results = []
    for batch in _both(policy, batch_name):
        logp_BT = policy.response_logps(batch)
        weight_BT = torch.arange(1.0, 1 + logp_BT.numel()).view(logp_BT.shape).sin()
        (logp_BT * weight_BT).sum().backward()
        results.append((logp_BT.detach(), _gradients(policy.model)))
    (logp_packed, gradient_packed), (logp_plain, gradient_plain) = results
    torch.testing.assert_close(logp_packed, logp_plain, atol=2e-5, rtol=1e-5)
    assert (logp_packed != 0).sum() == sum(map(len, BATCHES[batch_name][1]))
    assert gradient_packed.keys() == gradient_plain.keys()
    for name, gradient in gradient_packed.items():
        torch.testing.assert_close(gradient, gradient_plain[name], atol=3e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("family", PACKING)
@pytest.mark.parametrize("before", [False, True])
def test_packed_heads_and_their_gradients_equal_padded_ones(family: str, before: bool) -> None:
    policy = random_policy(family)
    head = ScalarHead.copied_from(policy, num_outputs=2, dropout=0.3).train()
    torch.nn.init.normal_(head.head.weight, std=0.2)
    results = []
    for batch in _both(policy):
        torch.manual_seed(3)
        output_BTn = head(batch, before=before)
        (output_BTn[batch.mask_BT] ** 2).sum().backward()
        results.append((output_BTn.detach()[batch.mask_BT], _gradients(head)))
    (packed, gradient_packed), (plain, gradient_plain) = results
    torch.testing.assert_close(packed, plain, atol=2e-5, rtol=1e-5)
    for name, gradient in gradient_packed.items():
        torch.testing.assert_close(gradient, gradient_plain[name], atol=3e-4, rtol=1e-3, msg=name)


def test_adapters_are_read_in_the_packed_layout() -> None:
    lora = LoraConfig(rank=2, alpha=4, dropout=0.0, target_modules="all-linear")
    policy = with_lora(random_policy("llama"), lora, seed=0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    packed, plain = _both(policy)
    torch.testing.assert_close(policy.response_logps(packed), policy.response_logps(plain), atol=2e-5, rtol=1e-5)
    with policy.without_adapters():
        frozen = policy.response_logps(packed)
    assert not torch.allclose(frozen, policy.response_logps(packed), atol=1e-3)


def test_a_head_with_adapters_is_read_with_them() -> None:
    lora = LoraConfig(rank=2, alpha=4, dropout=0.0, target_modules=["q_proj", "lm_head"])
    policy, plain = (with_lora(random_policy("llama_untied"), lora, seed=0) for _ in range(2))
    adapter = policy.model.base_model.model.lm_head.lora_B.default.weight
    torch.nn.init.normal_(adapter, std=0.3)
    logp_BT = policy.response_logps(policy.batch(PROMPTS, RESPONSES))
    logp_BT.sum().backward()
    assert adapter.grad is not None and adapter.grad.abs().max() > 0.1
    unmoved_BT = plain.response_logps(plain.batch(PROMPTS, RESPONSES))
    assert (logp_BT - unmoved_BT).abs().max() > 0.1


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3", "gpt_neox", "mistral_window"])
def test_other_families_keep_the_padded_layout(family: str) -> None:
    assert random_policy(family).batch(PROMPTS, RESPONSES).packed is None


def test_a_model_with_a_forward_of_its_own_is_read_as_it_wants() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.config, self.base_model = model, model.config, model.base_model

        def forward(self, logits_to_keep: int = 0, **named: object) -> object:
            return self.inner(logits_to_keep=logits_to_keep, **named)

    policy = random_policy("llama")
    wrapped = LanguageModel(Wrapped(policy.model), policy.tokenizer)
    batch = wrapped.batch(PROMPTS, RESPONSES)
    assert batch.packed is None
    torch.testing.assert_close(
        wrapped.response_logps(batch), policy.response_logps(_both(policy)[0]), atol=2e-5, rtol=1e-5
    )


def test_a_prompt_that_responses_share_and_a_row_that_comes_twice_are_read_once() -> None:
    packed = random_policy("llama").batch(PROMPTS, RESPONSES).packed
    assert packed is not None
    assert len(packed.ids_N) == 3 + 1 + 2 + sum(map(len, RESPONSES[:5]))


def test_a_part_of_a_batch_is_read_padded_and_the_whole_packed() -> None:
    batch = random_policy("llama").batch(PROMPTS, RESPONSES)
    assert batch.part(slice(0, 6)) is batch
    assert batch.part(slice(1, 3)).packed is None


class _MostLogits(TorchDispatchMode):
    """Notes how many rows of logits an operation has made at most."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        makes = func is not torch.ops.aten.t.default  # the head's weights, turned
        if makes and isinstance(found, torch.Tensor) and found.ndim > 1 and found.shape[-1] == self.vocabulary:
            self.rows = max(self.rows, found[..., 0].numel())
        return found


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "called as a whole"])
def test_portions_of_logits_give_the_same_values_and_gradients(wrapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = random_policy("llama_untied")
    batch, vocabulary = policy.batch(PROMPTS, RESPONSES), policy.model.config.vocab_size
    results, most = [], []
    for whole, rows in ((1 << 26, 128), (1 << 26, 4), (4 * vocabulary, 128)):
        monkeypatch.setattr(logps, "WHOLE_LOGITS", whole)
        monkeypatch.setattr(portions, "_CPU_ROWS", rows)
        monkeypatch.setattr(portions, "_CPU_LOGITS", rows * vocabulary)
        with _MostLogits(vocabulary) as seen:
            logp_BT = policy.response_logps(batch, (lambda **named: policy.model(**named)) if wrapped else None)
            (logp_BT * torch.arange(1.0, 1 + logp_BT.numel()).view(logp_BT.shape).cos()).sum().backward()
        results.append((logp_BT.detach(), _gradients(policy.model)))
        most.append(seen.rows)
    # In the second way portions are kept whole for the backward pass, in the third they are made again.
    num_tokens = sum(map(len, RESPONSES))
    assert most == [num_tokens, num_tokens, 4]
    (whole_BT, gradient_whole), *in_portions = results
    for portions_BT, gradient_portions in in_portions:
        torch.testing.assert_close(portions_BT, whole_BT, atol=1e-6, rtol=1e-6)
        for name, gradient in gradient_whole.items():
            torch.testing.assert_close(gradient_portions[name], gradient, atol=1e-4, rtol=1e-4, msg=name)
    assert "forward" not in vars(policy.model.lm_head)


def _varlen_of_the_tests(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    start_q: torch.Tensor,
    start_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """In the place of torch's kernel, which needs a GPU: one sequence after another; equal shapes and its rules."""
    assert window_size == (-1, 0) and query.shape[1] == key.shape[1] and start_q.dtype == start_k.dtype == torch.int32
    assert len(query) == start_q[-1] and len(key) == len(value) == start_k[-1]
    rows = []
    lengths_q, lengths_k = start_q.diff().tolist(), start_k.diff().tolist()
    assert max(lengths_q) == max_q and max(lengths_k) == max_k
    pieces = (tensor.split(lengths) for tensor, lengths in ((query, lengths_q), (key, lengths_k), (value, lengths_k)))
    for some_query, some_key, some_value in zip(*pieces, strict=True):
        num_q, num_k = len(some_query), len(some_key)
        seen = torch.ones(num_q, num_k, dtype=torch.bool).tril(num_k - num_q)  # the last query stands at the last key
        parts = (tensor.transpose(0, 1) for tensor in (some_query, some_key, some_value))
        context = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale)
        rows.append(context.transpose(0, 1))
    return torch.cat(rows)


def test_a_second_derivative_is_refused() -> None:
    hidden, weight = (torch.randn(rows, 3, requires_grad=True) for rows in (4, 7))
    logp_M = logps.head_logps(hidden, weight, None, torch.arange(4))
    (slope,) = torch.autograd.grad(logp_M.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


@pytest.mark.parametrize("batch_name", BATCHES)
@pytest.mark.parametrize("family", PACKING)
def test_attention_over_sequences_end_to_end_equals_that_over_rectangles(
    family: str, batch_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.nn.attention.varlen as varlen

    monkeypatch.setattr(varlen, "varlen_attn", _varlen_of_the_tests)
    policy, results = random_policy(family), []
    batch = _both(policy, batch_name)[0]
    ragged, padded = packing._attend_ragged, packing.attend_in_rectangles
    for attend in (padded, lambda query, key, value, packed, scale: ragged(query, key, value, packed.ragged, scale)):
        monkeypatch.setattr(packed_decoder, "attend_in_rectangles", attend)
        logp_BT = policy.response_logps(batch)
        logp_BT.sum().backward()
        results.append((logp_BT.detach(), _gradients(policy.model)))
    torch.testing.assert_close(results[0][0], results[1][0], atol=2e-5, rtol=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], atol=3e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("batch_name", BATCHES)
def test_heads_that_share_keys_ask_no_kernel_to_share_them_where_that_is_slow(
    batch_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, results = random_policy("llama"), []
    assert policy.unwrapped.config.num_key_value_heads < policy.unwrapped.config.num_attention_heads
    batch, shared = _both(policy, batch_name)[0], []

    def asked(*tensors: torch.Tensor, enable_gqa: bool, **named: Any) -> torch.Tensor:
        shared.append(enable_gqa)
        assert enable_gqa or tensors[0].shape[1] == tensors[1].shape[1]
        return scaled_dot_product_attention(*tensors, enable_gqa=enable_gqa, **named)

    monkeypatch.setattr(packing, "scaled_dot_product_attention", asked)
    for slow in (False, True):
        monkeypatch.setattr(packing, "_shares_keys_slowly", lambda value, slow=slow: slow)
        logp_BT = policy.response_logps(batch)
        logp_BT.sum().backward()
        results.append((logp_BT.detach(), _gradients(policy.model)))
    half = len(shared) // 2
    assert shared == [True] * half + [False] * half
    torch.testing.assert_close(results[0][0], results[1][0], atol=2e-5, rtol=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], atol=3e-4, rtol=1e-3, msg=name)


def test_on_a_gpu_keys_are_not_shared_in_rectangles() -> None:
    assert packing._shares_keys_slowly(torch.zeros(1).as_subclass(OnGpu))
    assert not packing._shares_keys_slowly(torch.zeros(1))


class OnGpu(torch.Tensor):
    """A tensor that says so."""

    is_cuda = True


@pytest.mark.parametrize(
    ("capability", "width", "dtype", "expected"),
    [
        ((8, 0), 64, torch.bfloat16, "ragged"),
        ((9, 0), 256, torch.bfloat16, "ragged"),
        ((7, 5), 64, torch.bfloat16, "rectangles"),
        ((8, 0), 264, torch.bfloat16, "rectangles"),
        ((8, 0), 60, torch.bfloat16, "rectangles"),
        ((8, 0), 64, torch.float32, "rectangles"),
    ],
)
def test_the_kernel_for_sequences_of_any_lengths_is_asked_only_where_it_runs(
    capability: tuple[int, int], width: int, dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def kernel(name: str) -> Any:
        return lambda query, *_: asked.append(name) or query

    monkeypatch.setattr(packing, "_attend_ragged", kernel("ragged"))
    monkeypatch.setattr(packing, "attend_in_rectangles", kernel("rectangles"))
    monkeypatch.setattr(packing, "_capability", lambda device: capability)
    tensor = torch.zeros(1, 2, 5, width, dtype=dtype)
    with packing.reading(random_policy("llama").batch(PROMPTS, RESPONSES).packed, random_policy("llama").model):
        packing.attend(None, tensor, tensor, tensor.as_subclass(OnGpu), None)
    assert asked == [expected]
