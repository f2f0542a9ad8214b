"""Runs ingest → sft → align on the tiny demonstrations in one process and prints the digests; to be killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from understudy.config import load_params
from understudy.platform.steps import align, ingest, sft

ROOT = Path(__file__).parents[2]
TINY = [
    f"data.source={ROOT / 'examples/tiny/demonstrations.jsonl'}",
    "model.scratch.vocab_size=300",
    "model.scratch.hidden_size=32",
    "model.scratch.intermediate_size=64",
    "model.scratch.num_layers=1",
    "model.scratch.context_tokens=96",
    "sft.epochs=3",
    "sft.batch_tokens=512",
    "sft.checkpoint_every_steps=2",
    "align.num_rounds=6",
    "align.rollout.prompts_per_round=4",
    "align.rollout.responses_per_prompt=2",
    "align.rollout.max_response_tokens=32",
    "align.discriminator.warmup_rounds=1",
    "align.discriminator.batch_pairs=4",
    "align.checkpoint_every_rounds=1",
]


def main() -> None:
    params = load_params(ROOT / "params.yaml", TINY)
    dumped = params.model_dump(mode="json")
    common = {"seed": params.seed, "code_sha256": "c0de"}
    dataset = ingest.run(common | {"data": dumped["data"], "source_sha256": ""})
    warm = sft.run(common | {"model": dumped["model"], "sft": dumped["sft"]}, dataset)
    aligned, judge = align.run(common | {"model": dumped["model"], "align": dumped["align"]}, dataset, warm)
    print(json.dumps({"sft": warm.sha256, "aligned": aligned.sha256, "discriminator": judge.sha256}))


if __name__ == "__main__":
    sys.exit(main())
