"""Runs ingest → sft → align on the tiny demonstrations in one process and prints the digests; to be killed.

Arguments are overrides of params.
"""

from __future__ import annotations

import json
import sys

from support.tiny import tiny_params

from understudy.platform.steps import align, ingest, sft

LONGER = ["sft.epochs=3", "sft.batch_tokens=512", "sft.checkpoint_every_steps=2", "align.num_rounds=6"]
LONGER += ["align.checkpoint_every_rounds=1", "align.rollout.max_response_tokens=32"]


def main() -> None:
    params = tiny_params(*LONGER, *sys.argv[1:])
    dumped = params.model_dump(mode="json")
    common = {"seed": params.seed, "code_sha256": "c0de"}
    dataset = ingest.run(common | {"data": dumped["data"], "source_sha256": ""})
    warm = sft.run(common | {"model": dumped["model"], "sft": dumped["sft"]}, dataset)
    aligned, judge = align.run(common | {"model": dumped["model"], "align": dumped["align"]}, dataset, warm)
    print(json.dumps({"sft": warm.sha256, "aligned": aligned.sha256, "discriminator": judge.sha256}))


if __name__ == "__main__":
    sys.exit(main())
