"""The fast paths of a GPU against the plain ones."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch

from benchmarks import gpu_works
from benchmarks.chisquare import accepted, p_values, rejected
from benchmarks.device import DEVICE, WIDTH, autocast
from benchmarks.gpu_works import WORK, Found, Keep
from benchmarks.subjects import create_model, random_ids, word_tokenizer
from understudy.models.decoding import CachedStepper, start_fused
from understudy.models.generation import SamplingSettings, generate
from understudy.models.graph_decoding import GraphStepper
from understudy.models.language_model import LanguageModel

# Of relative errors to the plain paths in float32; bfloat16 has eight bits, of logits some roundings add up.
AT_MOST = {"fp32": 1e-5, "bf16": 0.05}
ROWS_SAMPLED = 10_000
_TEMPERATURE, _ANOTHER = 0.8, 0.9


def checks(keep: Keep) -> Found:
    """The fast paths against the plain ones in float32 without TF32, and whether a sampler follows its probabilities.

    Each has its verdict, "ok": an error that is no number has none. The control samples at another temperature, and is
    ok if the test tells.
    """
    torch.set_float32_matmul_precision("highest")
    found: Found = {}
    try:
        for precision in WIDTH:
            found[f"graph_{precision}_logits"] = _judged(_graph_error(precision), precision)
            errors = _packed_errors(precision)
            found |= {name: _judged(error, precision) for name, error in errors.items()}
            keep(found)
            for name, temperature, is_right in (("sampled", _TEMPERATURE, accepted), ("control", _ANOTHER, rejected)):
                p_values = _p_values(precision, temperature)
                found[f"{name}_{precision}"] = {"p_values": p_values, "ok": is_right(p_values)}
            keep(found)
        return found
    finally:
        torch.set_float32_matmul_precision("high")


def _judged(error: float, precision: str) -> Found:
    return {"error": error, "at_most": AT_MOST[precision], "ok": error <= AT_MOST[precision]}


@torch.no_grad()
def _graph_error(precision: str) -> float:
    """Of logits after 70 tokens by graphs, which crosses a block of columns, to the model's own."""
    policy, prompts = (
        gpu_works.policy(),
        [ids[: 3 + 5 * row] for row, ids in enumerate(random_ids(4, 40, WORK.vocabulary, 0))],
    )
    plain = CachedStepper.of(policy, prompts, 2)
    with autocast(precision):
        stepper = start_fused(GraphStepper, policy, prompts, 2, 72)
        for row in random_ids(70, 8, WORK.vocabulary, 3):
            token_B = torch.tensor(row, device=DEVICE)
            stepper.step(token_B)
            with torch.autocast(DEVICE, enabled=False):
                plain.step(token_B)
    return _relative(stepper.logits_BV, plain.logits_BV)


def _packed_errors(precision: str) -> dict[str, float]:
    """Of log-probabilities and gradients of a packed batch to those of a padded one in float32."""
    policy, found = gpu_works.policy(), []
    prompts = [prompt for prompt in random_ids(4, 20, WORK.vocabulary, 4) for _ in range(2)]
    responses = [ids[: 2 + 3 * row] for row, ids in enumerate(random_ids(8, 24, WORK.vocabulary, 5))]
    batch = policy.batch(prompts, responses)
    for some, kind in ((batch, precision), (dataclasses.replace(batch, packed=None), "fp32")):
        with autocast(kind):
            logp_BT = policy.response_logps(some)
        logp_BT.sum().backward()
        gradients = [value.grad.flatten().clone() for value in policy.model.parameters() if value.grad is not None]
        policy.model.zero_grad()
        found.append((logp_BT.detach(), torch.cat(gradients)))
    names = (f"packed_{precision}_logps", f"packed_{precision}_gradients")
    return {name: _relative(*pair) for name, pair in zip(names, zip(*found, strict=True), strict=True)}


@torch.no_grad()
def _p_values(precision: str, temperature: float) -> list[float]:
    """Of tokens that graphs sample at a temperature, had it been `_TEMPERATURE`, by the model in that precision."""
    model = create_model("0.1M", 64, 16).to(DEVICE)
    for value in model.parameters():
        value.mul_(4.0)  # far from uniform
    policy = LanguageModel(model, word_tokenizer(64))
    policy.pad_token_id = 0
    settings, generator = SamplingSettings(2, temperature=temperature), torch.Generator(DEVICE).manual_seed(11)
    prompt = [5, 9, 7]

    def probabilities(tokens: list[int]) -> torch.Tensor:
        with autocast(precision):
            logits_V = model(torch.tensor([[*prompt, *tokens]], device=DEVICE)).logits[0, -1]
        return (logits_V.double() / _TEMPERATURE).softmax(-1)

    with autocast(precision):
        begin = partial(start_fused, GraphStepper)
        rows = generate(policy, [prompt], settings, generator, ROWS_SAMPLED, begin=begin).responses
    return p_values(rows, probabilities)


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
