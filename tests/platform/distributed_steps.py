"""Runs ingest, sft and align on the tiny demonstrations as a pod would; exits as the command line does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from support.tiny import tiny_params

from understudy.errors import UnderstudyError
from understudy.platform.steps import align, ingest, sft
from understudy.records import PolicyRef

LONGER = ["sft.epochs=2", "sft.batch_tokens=512", "sft.checkpoint_every_steps=1000", "align.num_rounds=6"]
LONGER += ["align.checkpoint_every_rounds=1000", "align.rollout.max_response_tokens=32"]


def main() -> int:
    params = tiny_params(*LONGER)
    dumped = params.model_dump(mode="json")
    common = {"seed": params.seed, "code_sha256": "c0de"}
    try:
        dataset = ingest.run(common | {"data": dumped["data"], "source_sha256": ""})
        # As a pipeline does, keep what a step returned.
        kept = Path(sys.argv[1]).with_name("sft.json")
        if not kept.exists():
            warm = sft.run(common | {"model": dumped["model"], "sft": dumped["sft"]}, dataset)
            kept.write_text(json.dumps(warm.to_json()), encoding="utf-8")
        warm = PolicyRef.from_json(json.loads(kept.read_text(encoding="utf-8")))
        aligned, judge = align.run(common | {"model": dumped["model"], "align": dumped["align"]}, dataset, warm)
    except UnderstudyError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    Path(sys.argv[1]).write_text(json.dumps({"sft": warm.uri, "aligned": aligned.uri, "discriminator": judge.uri}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
