"""One process of a job of several: runs the scenarios of a JSON file, one after another, and writes what came out."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from training.helpers import align_config, examples, loop, random_policy, sft_config

from understudy.errors import IntegrityError, Preempted
from understudy.models import logps
from understudy.models.discriminator import create_discriminator
from understudy.models.generation import SamplingSettings, generate
from understudy.models.language_model import LanguageModel
from understudy.models.loading import with_lora
from understudy.training.adversarial import align, num_discriminator_outputs
from understudy.training.loop import Loop
from understudy.training.methods import composed
from understudy.training.sft import train_sft
from understudy.training.state import Models


def run(scenario: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a scenario with checkpoints in its folder; returns its history, and its weights' digest and file."""
    rank = int(os.environ.get("RANK", "0"))
    polls = iter(range(10**6))
    stops_here = scenario.get("stop_rank", rank) == rank
    stop_after = scenario.get("stop_after", 10**6) if stops_here else 10**6
    surroundings = loop(folder, lambda: next(polls) + 1 >= stop_after)
    message = ""
    modules: dict[str, Any] = {}
    try:
        kinds = {"sft": _sft, "align": _align, "generate": _generate, "unreadable": _unreadable}
        modules = kinds[scenario["kind"]](scenario, surroundings)
    except (Preempted, IntegrityError) as error:
        message = str(error)
    whole = {
        f"{name}.{key}": surroundings.processes.whole({"": value.detach()})[""].clone().contiguous()
        for name, module in modules.items()
        for key, value in module.named_parameters()
    }
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in whole.values())).hexdigest()
    logged = len(surroundings.tracker.logged)
    if whole and rank == 0:
        save_file(whole, folder / "weights.safetensors")
    return {"history": surroundings.history, "digest": digest, "stopped": message, "logged": logged}


def _sft(scenario: dict[str, Any], surroundings: Loop) -> dict[str, Any]:
    policy = _policy(scenario)
    rows = examples(policy)
    config = sft_config("sft.epochs=3", *scenario.get("overrides", []))
    train_sft(policy, rows[:18], rows[18 : 18 + scenario.get("held_out", 6)], config, 1, surroundings)
    return {"policy": policy.model}


def _align(scenario: dict[str, Any], surroundings: Loop) -> dict[str, Any]:
    config = align_config(*scenario.get("overrides", []))
    policy, reference = _policy(scenario), random_policy("llama")
    torch.manual_seed(7)
    num_outputs = num_discriminator_outputs(config)
    discriminator = create_discriminator(config.discriminator, num_outputs, reference, lambda: reference)
    # A pairwise loss leaves the bias free: its gradient is rounding, which Adam makes a whole step of.
    bias = getattr(discriminator, "head", discriminator).bias
    bias.requires_grad_(not composed(config)[0].discriminator.loss.startswith("bradley_terry"))
    rows = examples(policy)
    held_out = rows[18 : 18 + scenario.get("held_out", 6)]
    align(Models(policy, reference, discriminator), rows[:18], held_out, config, 1, surroundings)
    return {"policy": policy.model, "discriminator": discriminator}


def _generate(scenario: dict[str, Any], surroundings: Loop) -> dict[str, Any]:
    policy = random_policy(scenario["family"])
    prompts = [row.prompt for row in examples(policy, scenario["num_prompts"])]
    settings = SamplingSettings(24, top_p=scenario.get("top_p", 1.0))
    alone = generate(policy, prompts, settings, torch.Generator().manual_seed(4), scenario["repeats"])
    # Random weights hardly ever end a response: let a frequent token do, so that rows end at different times.
    policy.end_token_id = Counter(token for row in alone.responses for token in row).most_common(1)[0][0]
    generator = torch.Generator().manual_seed(3)
    rollouts = generate(policy, prompts, settings, generator, scenario["repeats"], peers=surroundings.processes)
    surroundings.history += [{"response": row} for row in zip(rollouts.responses, rollouts.finished, strict=True)]  # type: ignore[misc]
    return {}


def _unreadable(scenario: dict[str, Any], surroundings: Loop) -> dict[str, Any]:
    """Process 0 finds a checkpoint that it cannot read."""

    def latest() -> None:
        raise IntegrityError("state.json is cut short" if surroundings.processes.is_main else "not mine to read")

    surroundings.processes.from_main(latest)
    return {}


def _policy(scenario: dict[str, Any]) -> LanguageModel:
    policy = random_policy(scenario.get("family", "llama"))
    if scenario.get("lora"):
        from understudy.config import LoraConfig

        policy = with_lora(policy, LoraConfig(rank=2, alpha=4, dropout=0.0, target_modules="all-linear"), 5)
    return policy


def main(arguments: Iterable[str]) -> None:
    request, rank = Path(next(iter(arguments))), os.environ["RANK"]
    torch.set_num_threads(1)
    for name, scenario in json.loads(request.read_text(encoding="utf-8")).items():
        folder = request.parent / name
        folder.mkdir(exist_ok=True)
        # In the job alone: the one process that it is compared with makes all logits at once.
        with patch.object(logps, "WHOLE_LOGITS", scenario.get("whole_logits", logps.WHOLE_LOGITS)):
            result = run(scenario, folder)
        (folder / f"result-{rank}.json").write_text(json.dumps(result), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
