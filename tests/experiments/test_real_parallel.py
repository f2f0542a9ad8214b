"""Cells in several processes: in an order in which nothing is trained twice, and measured as if made by one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
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

    def terminate(self) -> None:
        self.looks = 2

    def poll(self) -> int | None:
        self.looks += 1
        return self.code if self.looks > 1 else None

    def wait(self) -> int:
        return self.code


def test_sft_goes_first_and_longer_sft_after_the_arm_whose_compute_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running: list[tuple[Job, _Process]] = []
    most = 0

    def start(job: Job, shared: list[str], log: Path) -> Any:
        nonlocal most
        alive = [other for other, process in running if process.looks < 2]
        assert not job.after & set(alive) and job.after <= {other for other, _ in running}
        running.append((job, _Process(0)))
        most = max(most, len(alive) + 1)
        log.write_text("done")
        return running[-1][1]

    monkeypatch.setattr(parallel, "_start", start)
    monkeypatch.setattr(parallel, "_POLL_SECONDS", 0.0)
    arms = ["sft_longer_ngrams_wide_last", "sft_more_last", "js_token"]
    work = ["--work", str(tmp_path)]
    assert parallel.main(["--seeds", "3", "4", "--processes", "3", "--arms", *arms, *work]) == 0
    assert [job for job, _ in running][:2] == [Job(3, "sft"), Job(4, "sft")] and most == 3
    # An arm that another needs is run though nobody named it.
    assert sorted({job.arm for job, _ in running}) == sorted(["sft", "reverse_kl_ngrams_wide", *arms])
    assert len(running) == 2 * 5


def test_what_failed_is_told_with_its_last_words_and_what_needs_it_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Job] = []

    def start(job: Job, shared: list[str], log: Path) -> Any:
        started.append(job)
        failing = job in (Job(0, "sft"), Job(1, "reverse_kl_sequence"))
        log.write_text("\n".join(f"line {number}" for number in range(20)) if failing else "done")
        return _Process(7 if failing else 0)

    monkeypatch.setattr(parallel, "_start", start)
    monkeypatch.setattr(parallel, "_POLL_SECONDS", 0.0)
    arms = ["--arms", "reverse_kl_sequence", "sft_longer", "js_token"]
    assert parallel.main(["--seeds", "0", "1", *arms, "--work", str(tmp_path)]) == 1
    assert started == [Job(0, "sft"), Job(1, "sft"), Job(1, "reverse_kl_sequence"), Job(1, "js_token")]
    told = capsys.readouterr().out
    assert "sft, seed 0: failed with 7: line 5\n" in told and "line 19\n" in told
    assert "js_token, seed 0: not run, for sft of seed 0 failed" in told
    assert "sft_longer, seed 1: not run, for reverse_kl_sequence of seed 1 failed" in told


def test_wrong_options_are_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, said in (
        (["--tasks", "nonsense"], "invalid choice: 'nonsense'"),
        (["--processes", "0"], "--processes is 0; at least 1 has to run"),
        (["--arms", "table"], "--arms table is for `python -m experiments.real`"),
    ):
        with pytest.raises(SystemExit):
            parallel.main(wrong)
        assert said in capsys.readouterr().err


def test_what_runs_at_the_limit_is_ended_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 1.0] + [100.0] * 9)
    monkeypatch.setattr(parallel.time, "monotonic", lambda: next(clock))
    held: list[Any] = []

    def start(job: Job, shared: list[str], log: Path) -> Any:
        held.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return held[-1]

    monkeypatch.setattr(parallel, "_start", start)
    assert parallel.main(["--seeds", "0", "--arms", "js_token", "--limit", "50", "--work", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "the limit of 50 s has come; ended or not begun: js_token of seed 0, sft of seed 0" in told
    assert [process.poll() for process in held] == [-signal.SIGTERM]


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
    assert main([*shared, "--arms", "sft", "reverse_kl_ngrams", "spin", "--seeds", "0", "--measure-only"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == names
    assert json.loads((tmp_path / "out" / names[1]).read_text())["decodings"]["T=1"]["scores"]
