"""What a model folder may not do when it is loaded."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest
from support.small_policy import write_small_policy

from understudy.config import ModelConfig
from understudy.errors import ConfigError
from understudy.models.loading import create_policy, load_policy


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_small_policy(tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": names}))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda question="": asked.append(question) or "y")
    pretrained = ModelConfig(
        init="pretrained", scratch=None, path=str(folder), gguf_file=None, revision=None,
        lora=None, precision="fp32",
    )  # fmt: skip
    said = "comes with code of its own, and such code is never run. Name a model whose architecture transformers has"
    for load in (lambda: load_policy(folder), lambda: create_policy(pretrained, (), seed=0)):
        with pytest.raises(ConfigError, match=said):
            load()
    assert not asked and not (tmp_path / "ran").exists()
