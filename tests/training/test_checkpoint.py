from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from support.refused_writes import files_of_at_most

from understudy.errors import UnderstudyError
from understudy.training.checkpoint import (
    Checkpoints,
    optimizer_tensors,
    restore_optimizer,
    restore_parameters,
    trainable_tensors,
)


def test_latest_returns_what_was_saved_and_keeps_two(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": torch.full((2,), float(step))}, {"note": step})
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest.step, latest.tensors["w"].tolist(), latest.state) == (3, [3.0, 3.0], {"note": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "no_manifest", "half_manifest"])
def test_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": torch.ones(4)}, {})
    checkpoints.save(2, {"w": torch.zeros(4)}, {})
    newest = tmp_path / "step-00000002"
    content = (newest / "tensors.safetensors").read_bytes()
    if damage == "flip":
        (newest / "tensors.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncate":
        (newest / "tensors.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "no_manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text('{"tensors.safe')
    latest = checkpoints.latest()
    assert latest is not None and latest.step == 1


def test_full_disk_keeps_the_previous_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": torch.ones(1)}, {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", full)
    expected = "step 2 could not be written .*No space left.*previous checkpoint is intact"
    with pytest.raises(UnderstudyError, match=expected):
        checkpoints.save(2, {"w": torch.ones(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_write_that_the_system_refuses_keeps_the_previous_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": torch.ones(1)}, {})
    expected = "step 2 could not be written .*File too large.*previous checkpoint is intact"
    with files_of_at_most(65536), pytest.raises(UnderstudyError, match=expected):
        checkpoints.save(2, {"w": torch.ones(65536)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_what_killed_processes_left_half_written_goes_when_a_run_resumes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": torch.ones(1)}, {})
    for name in (".step-00000001.77", ".step-00000002.4194305"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tensors.safetensors").write_bytes(b"half")
    latest = checkpoints.latest()
    assert latest is not None and latest.step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_optimizer_and_parameters_round_trip_to_identical_updates() -> None:
    def network() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def update(layer: torch.nn.Linear, optimizer: torch.optim.AdamW, seed: int) -> None:
        data = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        layer(data).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    layer, optimizer = network()
    update(layer, optimizer, 1)
    live = trainable_tensors("m", layer) | optimizer_tensors("o", optimizer)
    saved = {key: value.clone() for key, value in live.items()}
    update(layer, optimizer, 2)
    other, other_optimizer = network()
    restore_parameters("m", other, saved)
    restore_optimizer("o", other_optimizer, saved)
    update(other, other_optimizer, 2)
    assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)


def test_a_step_that_is_saved_already_stays_and_is_not_gone_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"w": torch.ones(1)}, {"note": 1})
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: pytest.fail("the only checkpoint was removed"))
    checkpoints.save(1, {"w": torch.ones(1)}, {"note": 1})
    monkeypatch.undo()
    (tmp_path / "step-00000001" / "state.json").write_text("half")
    checkpoints.save(1, {"w": torch.ones(1)}, {"note": 2})
    latest = checkpoints.latest()
    assert latest is not None and latest.state == {"note": 2}
