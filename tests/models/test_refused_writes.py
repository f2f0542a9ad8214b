"""Weights that the disk refuses: an OSError as of any other file, said to people as a full disk."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from models.families import random_policy
from safetensors import SafetensorError
from support.refused_writes import files_of_at_most

from understudy.errors import UnderstudyError
from understudy.models.language_model import LanguageModel
from understudy.models.ngram_reader import NGramReader
from understudy.models.refused_writes import refused_as_os_error
from understudy.platform.context import step_context

SAVED: dict[str, Callable[[LanguageModel, Path], None]] = {
    "policy": lambda policy, folder: policy.save(folder),
    "policy without adapters": lambda policy, folder: policy.save_unadapted(folder),
    "discriminator": lambda _, folder: NGramReader(1, (2, 3), 2**16, 0.0).save(folder, {}),
}


@pytest.mark.parametrize("kind", SAVED)
def test_weights_that_do_not_fit_are_an_os_error_with_the_systems_number(tmp_path: Path, kind: str) -> None:
    policy = random_policy("llama")
    with files_of_at_most(16384), pytest.raises(OSError, match="File too large") as refused:
        SAVED[kind](policy, tmp_path / "saved")
    assert refused.value.errno == errno.EFBIG and str(tmp_path / "saved") in str(refused.value.filename)


def test_a_step_says_it_in_one_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    policy = random_policy("llama")
    words = r"The disk is full: writing .*saved.* failed \(File too large\) with .* MB free"
    with pytest.raises(UnderstudyError, match=words):
        with step_context("sft", {}), files_of_at_most(16384):
            policy.save(tmp_path / "saved")


def test_what_is_no_refusal_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="InvalidHeader"), refused_as_os_error(tmp_path):
        raise SafetensorError("InvalidHeader")
