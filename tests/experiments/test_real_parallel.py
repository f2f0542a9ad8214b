"""Cells in several processes: in an order in which nothing is trained twice, and measured as if made by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.real import parallel
from experiments.real.__main__ import main
from experiments.real.parallel import Job

SHARED = ["--smoke", "--tasks", "pick"]


class _Process:
    """In the place of a process: ends at the second look."""

    def __init__(self, code: int) -> None:
        self.looks, self.code, self.returncode = 0, code, code

    def poll(self) -> int | None:
        self.looks += 1
        return self.code if self.looks > 1 else None

    def kill(self) -> None:
        self.looks = 2

    def wait(self) -> int:
        return self.code


def test_sft_goes_first_and_longer_sft_after_the_arm_whose_compute_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running: list[tuple[Job, _Process]] = []
    most = 0

    def start(job: Job, shared: list[str], folder: Path) -> Any:
        nonlocal most
        alive = [other for other, process in running if process.looks < 2]
        assert not job.after & set(alive) and job.after <= {other for other, _ in running}
        running.append((job, _Process(0)))
        most = max(most, len(alive) + 1)
        (folder / f"{job.arm}-{job.seed}.log").write_text("done")
        return running[-1][1]

    monkeypatch.setattr(parallel, "_start", start)
    monkeypatch.setattr(parallel, "_POLL_SECONDS", 0.0)
    arms = ["sft_longer_ngrams_wide_last", "sft_more_last", "js_token"]
    assert parallel.main(["--seeds", "3", "4", "--processes", "3", "--arms", *arms]) == 0
    assert [job for job, _ in running][:2] == [Job(3, "sft"), Job(4, "sft")] and most == 3
    # An arm that another needs is run though nobody named it.
    assert sorted({job.arm for job, _ in running}) == sorted(["sft", "reverse_kl_ngrams_wide", *arms])
    assert len(running) == 2 * 5


def test_what_failed_is_told_with_its_last_words_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert parallel.main(["--seeds", "0", "--arms", "sft", "--tasks", "nonsense"]) == 1
    told = capsys.readouterr().out
    assert "sft, seed 0: failed with 2:" in told and "invalid choice: 'nonsense'" in told


def test_what_runs_at_the_limit_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert parallel.main(["--seeds", "0", "--arms", "sft", "--limit", "0", *SHARED]) == 1
    assert "sft, seed 0: ended at the limit of 0 s" in capsys.readouterr().err


def test_samples_of_several_processes_are_measured_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = [*SHARED, "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    arms = ["--arms", "sft", "reverse_kl_ngrams", "--seeds", "0"]
    assert parallel.main([*arms, *shared]) == 0
    assert len(list((tmp_path / "work/sft").iterdir())) == 1
    names = [f"pick-24-{arm}-0.json" for arm in ("reverse_kl_ngrams", "sft")]
    assert sorted(path.name for path in (tmp_path / "out/samples").iterdir()) == names
    assert not list((tmp_path / "out").glob("*.json"))
    assert main([*shared, *arms]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == names
    assert json.loads((tmp_path / "out" / names[1]).read_text())["decodings"]["T=1"]["scores"]
