"""The README's commands are made of params that load."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from understudy.config import load_params

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
RUNS = [words for line in LINES if (words := shlex.split(line.split(" # ")[0])) and words[1:3] == ["understudy", "run"]]


def _after(words: list[str], option: str) -> list[str]:
    return [value for name, value in zip(words, words[1:], strict=False) if name == option]


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_a_run_of_the_readme_loads(words: list[str]) -> None:
    presets = [ROOT / name for name in _after(words, "--preset")]
    params = load_params(ROOT / "params.yaml", _after(words, "--set"), presets)
    assert params.registry.name == "my-model"


def test_there_are_runs() -> None:
    assert len(RUNS) >= 2
