"""One policy that stands still, several discriminators: their held-out AUC as they learn, in the production loop.

Half of the demonstrations train the SFT policy. A discriminator then learns from that half ("seen") or from the other
("withheld"), against samples of the policy to the same prompts; its AUC is measured on held-out groups. Whether it also
ranks the policy's valid samples above its invalid ones, above all those to the same prompt, is what the policy's update
depends on, and what best-of-n gains by it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.real.cell import Folders, Study
from experiments.real.tasks import TASKS, load
from understudy.config import Params, load_params
from understudy.data.demonstrations import Demonstration
from understudy.evaluation.judges import load_judge
from understudy.evaluation.policies import LoadedPolicies
from understudy.models.discriminator import Discriminator, create_discriminator
from understudy.models.generation import SamplingSettings, generate
from understudy.models.language_model import LanguageModel, Seen, TokenBatch
from understudy.models.loading import create_policy, load_policy
from understudy.models.trunk_reader import TrunkReader
from understudy.training.adversarial import align, num_discriminator_outputs
from understudy.training.discriminating import auc
from understudy.training.examples import Example, encode
from understudy.training.loop import step_seed
from understudy.training.sft import train_sft
from understudy.training.state import Models

ROOT = Path(__file__).parents[2]
KINDS = ("sft", "shared_trunk", "told", "ngrams")
LEARNED_FROM = ("seen", "withheld")
REPEATS = 8
_LEAST = 20  # samples or prompts: fewer say nothing of a seed
# Rates were chosen on seed 100: docs/lab-notes.md, 2026-11-29.
RATES = {"sft": 3e-4, "shared_trunk": 5e-4, "told": 5e-4, "ngrams": 1e-3}


class ToldReader(TrunkReader):
    """A reader that is told the log-probability of each token under the frozen policy, too."""

    def __init__(
        self, reference: LanguageModel, num_outputs: int, num_layers: int, width: int | None, dropout: float
    ) -> None:
        super().__init__(reference, num_outputs, num_layers, width, dropout)
        self.project = nn.Linear(2 * reference.hidden_size + 1, self.shape["width"])

    def features(self, seen: Seen) -> Tensor:
        """All, shape (B, T, 2H + 1)."""
        return torch.cat([super().features(seen), seen.logp_BT[..., None]], dim=-1)


@dataclass(frozen=True)
class Setting:
    """A task, how many demonstrations each half has, and how long a discriminator learns.

    Samples that are judged are drawn at `temperature`, after as many epochs of SFT that enough of them are valid.
    """

    task: str
    half: int
    num_rounds: int
    num_prompts: int
    temperature: float = 1.0
    overrides: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """All that a cell of this setting depends on but its seed, as JSON has it."""
        own = asdict(self) | {"overrides": list(self.overrides)}
        return own | {"repeats": REPEATS, "rates": RATES}

    def params(self, kind: str) -> Params:
        """Params of a discriminator; the policy's update is too small to move it."""
        own = {
            "init": "shared_trunk" if kind == "told" else kind,
            "learning_rate": RATES[kind],
            "warmup_rounds": self.num_rounds - 1,
            "warmup_updates_per_round": 8,
            "updates_per_round": 8,
            "batch_pairs": 32,
        }
        settings = {f"discriminator.{name}": value for name, value in own.items()} | {
            "num_rounds": 1,
            "learning_rate": 1e-12,
            "held_out_every_rounds": 5,
            "rollout.prompts_per_round": self.num_prompts,
        }
        task = TASKS[self.task]
        return load_params(
            ROOT / "params.yaml",
            (*task.overrides, *self.overrides, *(f"align.{name}={value}" for name, value in settings.items())),
        )


SETTINGS = {
    "pick": Setting("pick", 500, 25, 16),
    "ansible": Setting("ansible", 1000, 25, 24, temperature=0.5, overrides=("sft.epochs=16",)),
}


def measure(setting: Setting, seed: int, work: Path) -> dict[str, Any]:
    """AUC after every five rounds, of each kind and half; and the SFT policy's NLL on its half and on the other."""
    params = setting.params("sft")
    rows = load(TASKS[setting.task], 2 * setting.half, seed, work, params.evaluation.max_prompts, params.data.splits)
    texts = (text for row in rows.train for text in (row.prompt, row.response))
    policy = create_policy(params.model, texts, seed)
    seen, withheld = (
        encode(policy, half).examples for half in (rows.train[: setting.half], rows.train[setting.half :])
    )
    held_out = encode(policy, rows.test).examples
    study, folder = Study(Folders(work, work)), work / "policies" / f"{setting.task}-{seed}"
    with study._loop(params) as loop:
        train_sft(policy, seen, encode(policy, rows.validation).examples, params.sft, seed, loop)
    policy.save(folder)
    found: dict[str, Any] = {"settings": setting.described(), "task": setting.task, "half": setting.half, "seed": seed}
    judged = _judged_samples(policy, rows.test, params, setting.temperature, seed)
    num_valid = sum(int(valid_B.sum()) for _, valid_B in judged)
    found |= {"valid": round(num_valid / REPEATS / len(rows.test), 4), "auc": {}, "ranks": {}, "seconds": {}}
    parts = {"seen": rows.train[: setting.half], "held out": rows.test}
    found["nll"] = {name: _nll(policy, part, params) for name, part in parts.items()}
    for kind in KINDS:
        for name, train in (("seen", seen), ("withheld", withheld)):
            started = time.perf_counter()
            network, aucs = _trained(study, setting, kind, folder, (train, held_out), seed)
            found["auc"][f"{kind}, {name}"] = aucs
            found["ranks"][f"{kind}, {name}"] = _ranks(network, judged)
            found["seconds"][f"{kind}, {name}"] = round(time.perf_counter() - started, 1)
    return found


def _trained(
    study: Study, setting: Setting, kind: str, folder: Path, data: tuple[list[Example], list[Example]], seed: int
) -> tuple[Discriminator, list[float]]:
    params = setting.params(kind)
    policy, reference, own = load_policy(folder), load_policy(folder), params.align.discriminator
    reference.model.requires_grad_(False)
    torch.manual_seed(seed)
    outputs = num_discriminator_outputs(params.align)
    network: Discriminator
    if kind == "told":
        network = ToldReader(reference, outputs, own.reader_layers, own.reader_width, own.dropout)
    else:
        network = create_discriminator(own, outputs, reference, lambda: load_policy(folder))
    with study._loop(params) as loop:
        align(Models(policy, reference, network), *data, params.align, seed, loop)
        return network, [round(numbers["held_out_auc"], 4) for numbers in loop.history if "held_out_auc" in numbers]


def _judged_samples(
    policy: LanguageModel, rows: Sequence[Demonstration], params: Params, temperature: float, seed: int
) -> list[tuple[TokenBatch, Tensor]]:
    """Samples to held-out prompts, REPEATS each, and whether the task's judge finds each valid."""
    (judge,) = [load_judge(judge, root=ROOT) for judge in params.evaluation.judges]
    settings = SamplingSettings(params.evaluation.max_response_tokens, temperature)
    generator, made = torch.Generator().manual_seed(step_seed(seed, "judged")), []
    policy.model.eval()
    for start in range(0, len(rows), 32):
        some = rows[start : start + 32]
        prompts = [policy.encode_prompt([dict(message) for message in row.messages]) for row in some]
        rollouts = generate(policy, prompts, settings, generator, REPEATS)
        asked = [row for row in some for _ in range(REPEATS)]
        texts = [policy.decode(response) for response in rollouts.responses]
        score_B = judge.scores([row.prompt for row in asked], texts, [row.response for row in asked])
        batch = policy.batch([prompt for prompt in prompts for _ in range(REPEATS)], rollouts.responses)
        made.append((batch, torch.tensor(score_B > 0.5)))
    return made


@torch.no_grad()
def _ranks(network: Discriminator, judged: list[tuple[TokenBatch, Tensor]]) -> dict[str, float | None]:
    """How a discriminator ranks judged samples, each row of (P, REPEATS) being those to one prompt."""
    network.eval()
    scores = []
    for batch, _ in judged:
        last_B = batch.mask_BT.sum(dim=1) - 1
        scores.append(network(batch)[torch.arange(batch.num_rows), last_B, 0])
    valid_PK = torch.cat([valid_B for _, valid_B in judged]).view(-1, REPEATS)
    return ranks(torch.cat(scores).view(-1, REPEATS), valid_PK)


def ranks(score_PK: Tensor, valid_PK: Tensor) -> dict[str, float | None]:
    """The chance that a valid sample scores above an invalid one, and what choosing by the score gives.

    Args:
        score_PK: scores of K samples to each of P prompts.
        valid_PK: whether each is valid.

    Returns:
        "auc": over all pairs; "within": over pairs to one prompt, mean over prompts with both kinds; None with too
        few samples of a kind or such prompts. "best": share of prompts whose highest sample is valid.
    """
    mixed_P = valid_PK.any(dim=1) & ~valid_PK.all(dim=1)
    within = [
        auc(score[valid], score[~valid]) for score, valid in zip(score_PK[mixed_P], valid_PK[mixed_P], strict=True)
    ]
    few = min(int(valid_PK.sum()), int((~valid_PK).sum())) < _LEAST
    best_P = valid_PK.gather(1, score_PK.argmax(dim=1, keepdim=True))
    return {
        "auc": None if few else round(auc(score_PK[valid_PK], score_PK[~valid_PK]), 4),
        "within": None if len(within) < _LEAST else round(sum(within) / len(within), 4),
        "best": round(float(best_P.double().mean()), 4),
    }


def _nll(policy: LanguageModel, rows: Sequence[Demonstration], params: Params) -> float:
    """Nats a token."""
    models = LoadedPolicies(lambda _: policy, params.evaluation.max_response_tokens)
    sums, counts = models.expert_logps("policy", rows)
    return round(float(-sums.sum() / counts.sum()), 4)


def as_text(cell: dict[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(cell, separators=(",", ":"), allow_nan=False) + "\n"


def load_results(folder: Path) -> list[dict[str, Any]]:
    """All cells, by task and seed.

    Raises:
        ValueError: some are of other settings than those in force.
    """
    found = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    if old := [name for name, cell in found.items() if cell.get("settings") != SETTINGS[cell["task"]].described()]:
        raise ValueError(f"{folder}: {', '.join(old)}: made with other settings. Remove them and run this again.")
    return sorted(found.values(), key=lambda cell: (cell["task"], cell["seed"]))
