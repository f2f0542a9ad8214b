"""A GGUF file is read as the policy that it was written from, and trained and saved as plain weights."""

from __future__ import annotations

from pathlib import Path

import torch
from support.gguf_file import write_gguf
from support.small_policy import write_small_policy

from understudy.config import ModelConfig
from understudy.models.loading import create_policy, load_policy

MESSAGES = [{"role": "user", "content": "install nginx"}]


def test_a_gguf_file_gives_the_policys_logits_before_and_after_saving(tmp_path: Path) -> None:
    folder = write_small_policy(tmp_path / "policy")
    write_gguf(folder, tmp_path / "small.gguf")
    config = ModelConfig(
        init="pretrained", scratch=None, path=str(tmp_path), gguf_file="small.gguf", revision=None,
        lora=None, precision="fp32",
    )  # fmt: skip
    original, read = load_policy(folder), create_policy(config, (), seed=0)
    ids = original.encode_prompt(MESSAGES)
    assert read.encode_prompt(MESSAGES) == ids
    assert read.encode_response("start the service") == original.encode_response("start the service")
    ids_1T = torch.tensor([ids])
    logits_1TV = original.model(ids_1T).logits
    torch.testing.assert_close(read.model(ids_1T).logits, logits_1TV)
    read.save(tmp_path / "saved")
    torch.testing.assert_close(load_policy(tmp_path / "saved").model(ids_1T).logits, logits_1TV)
