"""The fast paths of a GPU against the plain ones."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks import gpu_works
from benchmarks.device import DEVICE, ON_GPU, WIDTH, autocast
from benchmarks.gpu_works import WORK, Found, Keep
from benchmarks.subjects import create_model, random_ids, word_tokenizer
from understudy.models.decoding import CachedStepper, start_fused
from understudy.models.generation import SamplingSettings, generate
from understudy.models.graph_decoding import GraphStepper
from understudy.models.language_model import LanguageModel


def checks(keep: Keep) -> Found:
    """Relative errors of the fast paths to the plain ones in float32 without TF32, and a sampler's chi-square."""
    torch.set_float32_matmul_precision("highest")
    try:
        found = {f"graph_{precision}_logits": _graph_error(precision) for precision in WIDTH}
        for precision in WIDTH:
            found |= _packed_errors(precision)
        return found | {"sampled_p": _sampled_p()}
    finally:
        torch.set_float32_matmul_precision("high")


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
def _sampled_p() -> float:
    """P-value of the second tokens of many rows against what the model gives after their first."""
    from scipy.stats import chisquare

    model = create_model("0.1M", 64, 16).to(DEVICE)
    for value in model.parameters():
        value.mul_(4.0)  # far from uniform
    policy = LanguageModel(model, word_tokenizer(64))
    policy.pad_token_id = 0
    rows = 20_000 if ON_GPU else 2_000
    generator = torch.Generator(DEVICE).manual_seed(11)
    rollouts = generate(policy, [[5, 9, 7]], SamplingSettings(2), generator, rows)
    first_B = torch.tensor([row[0] for row in rollouts.responses], device=DEVICE)
    prompt_BS = torch.tensor([[5, 9, 7]], device=DEVICE).expand(rows, -1)
    probability_BV = model(torch.cat([prompt_BS, first_B[:, None]], 1)).logits[:, -1].double().softmax(-1)
    due_V = probability_BV.sum(0).cpu()
    seen_V = torch.bincount(torch.tensor([row[1] for row in rollouts.responses]), minlength=64).double()
    common = due_V > 5
    seen, due = ([*value[common].tolist(), float(value[~common].sum())] for value in (seen_V, due_V))
    rare = slice(None, None if due[-1] > 0 else -1)
    return float(chisquare(seen[rare], [value * sum(seen) / sum(due) for value in due[rare]]).pvalue)


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
