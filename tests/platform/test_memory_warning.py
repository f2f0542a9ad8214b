"""A run that would not fit into memory says so before it trains for an hour."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from understudy.config import Params, load_params
from understudy.platform.steps.memory_warning import available_here, memory_warning

ROOT = Path(__file__).parents[2]
GIB = 2**30
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


ZERO_HEADS = json.dumps(
    {key: value for key, value in SMOLLM2.items() if key != "num_attention_heads"} | {"num_attention_heads": 0}
)


def ask(available_bytes: int, *overrides: str) -> str | None:
    params: Params = load_params(ROOT / "params.yaml", list(overrides))
    return memory_warning(params.data, params.model, params.align, available_bytes)


@pytest.fixture
def smollm2(tmp_path: Path) -> list[str]:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2), encoding="utf-8")
    return ["model.init=pretrained", f"model.path={tmp_path}"]


def gib(warning: str | None) -> float:
    found = re.search(r"about ([\d.]+) GiB .* of 134M parameters", warning or "")
    assert found, warning
    return float(found[1])


def test_the_default_run_fits_into_a_laptop() -> None:
    assert ask(GIB) is None
    small = ask(64 * 2**20)
    assert small is not None and "1M parameters, 0.1 GiB are available" in small


def test_a_pretrained_policy_is_read_from_its_folder(smollm2: list[str]) -> None:
    assert ask(64 * GIB, *smollm2) is None
    own = ask(4 * GIB, *smollm2)
    # Three networks and the moments of two, four bytes a number, are 3.8 GiB before anything is computed.
    assert 3.8 < gib(own) < 16
    assert own is not None and "align.discriminator.init=shared_trunk spares" in own


def test_what_it_recommends_helps(smollm2: list[str]) -> None:
    tight = 2 * GIB
    found = [
        gib(ask(tight, *smollm2, *more))
        for more in ([], ["align.micro_batch_tokens=1024"], ["align.discriminator.init=shared_trunk"])
    ]
    assert found[1] < found[0] and found[2] < found[0]
    assert "shared_trunk" not in (ask(tight, *smollm2, "align.discriminator.init=ngrams") or "")


@pytest.mark.parametrize("broken", ["{}", "not json", "[1]", json.dumps(SMOLLM2 | {"hidden_size": None}), ZERO_HEADS])
def test_a_model_that_the_formula_does_not_know_is_left_alone(tmp_path: Path, broken: str) -> None:
    (tmp_path / "config.json").write_text(broken, encoding="utf-8")
    assert ask(1, "model.init=pretrained", f"model.path={tmp_path}") is None


def test_the_discriminator_is_there_whatever_the_method(smollm2: list[str]) -> None:
    tight = 2 * GIB
    found = {method: gib(ask(tight, *smollm2, f"align.method={method}")) for method in ("adversarial", "selfplay")}
    assert found["selfplay"] == found["adversarial"]
    assert ask(tight, *smollm2, "align.method=rlhf") is None  # with a value network: no formula


def test_nor_are_adapters() -> None:
    lora = "model.lora={rank: 16, alpha: 32, dropout: 0.05, target_modules: all-linear}"
    assert ask(1) is not None and ask(1, lora) is None


def test_memory_counts_where_the_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    memory: Any = SimpleNamespace(available=5 * GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.delenv("UNDERSTUDY_RUNNER_PID", raising=False)
    assert available_here("cpu") is None  # a pod: the training's memory is another's
    monkeypatch.setenv("UNDERSTUDY_RUNNER_PID", "1")
    assert available_here("cpu") == 5 * GIB
    assert available_here("cuda") is None
