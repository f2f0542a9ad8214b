"""The benchmarks run, and their arithmetic is right; what they measure is not asserted."""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from benchmarks import (
    chisquare,
    device,
    finetuning,
    gpu,
    gpu_checks,
    gpu_parts,
    gpu_steps,
    gpu_works,
    machine,
    page,
    profiling,
    sampling,
    sharding,
    timing,
)
from benchmarks.__main__ import main
from benchmarks.aligning import OurStep, Work, align_config, formula_mib, least_flops
from benchmarks.gpu_works import WORK
from benchmarks.machine import Floor, commit
from benchmarks.scaling import exponent
from benchmarks.subjects import as_text, create_model, create_policy, make_end_likely, random_ids, word_tokenizer
from benchmarks.table import bar_of, load_text, show
from benchmarks.timing import Turn, Usage, alternate, compared, ratio_of_turns, usage
from understudy.models.decoding import start_fused
from understudy.models.generation import SamplingSettings, generate
from understudy.models.graph_decoding import GraphStepper
from understudy.training.replay import Sample
from understudy.training.state import AlignState, MicroBatch

FAILING_AFTER_A_CELL = """
import sys
from benchmarks import gpu, gpu_parts

timed = []

def step_seconds(kind, *_):
    timed.append(kind)
    if len(timed) > 2:
        raise RuntimeError("no such kernel\\nCompile with TORCH_USE_CUDA_DSA")
    return {"seconds": 1.0}

gpu_parts._step_seconds = step_seconds
sys.exit(gpu.main(["--part-alone", *sys.argv[1:]]))
"""

FLOOR = {"bf16_flops_per_second": 2e12, "fp32_flops_per_second": 1e12, "bytes_per_second": 1e12}


@pytest.fixture
def turns_here(monkeypatch: pytest.MonkeyPatch) -> list[timing.Contender]:
    """Turns within this process, because starting one with a peer takes seconds; all of them go through pickle."""
    taken: list[timing.Contender] = []

    def here(contender: timing.Contender) -> Turn:
        taken.append(contender)
        sent: timing.Contender = pickle.loads(pickle.dumps(contender))
        return sent()

    monkeypatch.setattr(timing, "alone", here)
    return taken


@pytest.fixture(autouse=True)
def _precision_of_the_process() -> Iterator[None]:
    """Accelerate keeps a process's precision: a benchmark in bfloat16 would be in the way of all tests after it."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("turns_here")
def test_quick_run_prints_a_table_and_keeps_the_raw_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = iter([Floor(1e9, 1e6), Floor(2e9, 5e5)])
    monkeypatch.setattr(machine, "measure_floor", lambda _: next(measured))
    assert main(["--quick", "--only", "sampling,ingest", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("cpu-quick-*.json")
    report = json.loads(path.read_text())
    assert [row["name"] for row in report["rows"]] == [
        "sampling 0.1M",
        "sampling 0.1M, rows that end",
        "ingest 500 rows",
        "ingest 500 rows with near-duplicate search",
    ]
    assert all(row["ours"] > 0 and len(row["load_average_before"]) == 3 for row in report["rows"])
    assert report["machine"]["threads"] == 1
    # The best rates of the run, of which one came after the row was measured: 58,608 parameters in 4 bytes, 4 rows.
    assert (report["machine"]["matrix_gflops"], report["machine"]["memory_gb_per_second"]) == (2.0, 0.0)
    assert report["rows"][0]["floor"] == pytest.approx(1e6 / (4 * 58_608 / 4))
    assert report["rows"][2]["floor"] is None
    # (1 - (2/3)^8) / (1/3) tokens are due before an end or the limit; the mean of 1,024 responses is spread by 0.07.
    ending = report["rows"][1]
    assert all(mean == pytest.approx(2.88, abs=0.25) for mean in ending["mean_lengths"].values())
    assert ending["tokens"]["ours"] == [round(1024 * ending["mean_lengths"]["ours"])]
    shown = capsys.readouterr().out
    assert "sampling 0.1M" in shown and "2.0 GFLOP/s in a matrix product" in shown


def test_steps_and_sft_run_beside_trls_trainers(tmp_path: Path, turns_here: list[timing.Contender]) -> None:
    # PeerStep counts what a TRL trainer sampled: another length than ours, or none, fails there.
    assert main(["--quick", "--only", "align,sft", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("cpu-quick-*.json")
    rows = json.loads(path.read_text())["rows"]
    peers = ("RLOO", "GRPO", "RLOO with freed memory kept", "RLOO with a static cache")
    steps = [(name, f"TRL {peer}") for name in ("", ", trunk of its own") for peer in peers]
    assert [(row["name"], row["peer_name"]) for row in rows[:8]] == [
        (f"align step 0.1M{name}", by) for name, by in steps
    ]
    assert [row["name"] for row in rows[8:]] == ["SFT 0.1M"] * 2
    for row, memory in zip(rows[8:], ("", " with freed memory kept"), strict=True):
        assert row["peer_name"].startswith(f"TRL SFT{memory}, packing ")
        assert set(row["seconds"]) == {"ours", f"cut{memory}", f"whole{memory}"}
    assert all(row["peer"] > 0 and row["ratio"] == pytest.approx(row["ours"] / row["peer"]) for row in rows)
    # Both of our steps compare with the same turns: six were taken in all, and five of SFT.
    assert len(turns_here) == 6 + 5
    for first, second in ((index, index + 4) for index in range(4)):
        peer = f"TRL {peers[first]}"
        assert rows[first]["seconds"][peer] == rows[second]["seconds"][peer]
        assert rows[first]["seconds"]["ours"] != rows[second]["seconds"]["ours"]
    assert all(row["tokens"]["ours"] == [2 * 2 * 8] and row["minor_faults"]["ours"][0] >= 0 for row in rows[:8])


def test_every_turn_of_every_contender_has_a_process_of_its_own() -> None:
    ours = partial(sampling.ours, sampling.Shape("0.1M", 2, 4, 4, 64))
    turns = timing.take_turns({"ours": ours, "peer": partial(Turn.between, usage(), usage(), 1)}, 1)
    assert len({os.getpid(), turns["ours"][0].process, turns["peer"][0].process}) == 3
    assert turns["ours"][0].tokens == 4 * 2 * 4 and turns["ours"][0].seconds > 0


def test_rows_that_end_elsewhere_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = {"ours": 1000, "dynamic": 1050, "static": 1150}

    def alone(contender: partial[Turn]) -> Turn:
        return Turn(tokens[contender.args[-1] if contender.func is sampling.peer else "ours"], 1.0, 0, 0.0, 1)

    monkeypatch.setattr(timing, "alone", alone)
    with pytest.raises(AssertionError, match="'static': 1.12"):
        sampling.measure(sampling.Shape("0.1M", 32, 8, 8, 64, ends=True), 1)


def test_what_fills_up_behind_an_end_does_not_count() -> None:
    token_BT = torch.tensor([[5, 6, 9], [9, 0, 0], [5, 9, 0], [9, 9, 9]])
    assert sampling.num_returned(token_BT, 9) == 3 + 1 + 2 + 1


def test_the_end_has_its_chance_at_every_position() -> None:
    policy = create_policy("0.1M", 64, 32, ends_inside=True)
    make_end_likely(policy, 1 / 24)
    with torch.no_grad():
        probability_BSV = policy.model(torch.tensor(random_ids(4, 20, 62, 0))).logits.softmax(-1)
    assert policy.end_token_id == 62
    assert probability_BSV[..., 62].sub(1 / 24).abs().max() < 0.001
    assert probability_BSV[..., :62].max() < 1.2 / 64


def test_a_turn_is_what_was_used_between_two_times() -> None:
    turn = Turn.between(Usage(10.0, 100, 1.0), Usage(14.0, 350, 1.5), 20)
    assert turn == Turn(tokens=20, seconds=4.0, minor_faults=250, system_seconds=0.5, process=os.getpid())
    found = compared({"ours": [turn], "peer": [replace(turn, seconds=10.0, process=7)]}, "peer")
    assert (found["ours"], found["peer"], found["ratio"]) == (5.0, 2.0, 2.5)
    assert found["minor_faults"] == {"ours": [250], "peer": [250]} and found["process"]["peer"] == [7]


def test_a_commit_is_dirty_by_changes_but_those_of_results(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        done = subprocess.run(["git", "-C", tmp_path, *who, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert commit(tmp_path) is None
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    files = [tmp_path / name for name in ("code.py", "benchmarks/results/cpu.json")]
    git("init", "-q")
    for file in files:
        file.write_text("1")
    git("add", ".")
    git("commit", "-qm", "m")
    (tmp_path / "new.py").write_text("not known to git")
    files[1].write_text("2")
    assert commit(tmp_path) == git("rev-parse", "--short", "HEAD")
    files[0].write_text("2")
    assert commit(tmp_path) == git("rev-parse", "--short", "HEAD") + "-dirty"


def test_a_floor_is_the_longer_of_both_at_the_best_rates() -> None:
    floor = Floor(100.0, 5.0).best(Floor(80.0, 10.0))
    assert floor == Floor(100.0, 10.0)
    assert floor.per_second(flops=50.0) == 2.0 and floor.per_second(flops=50.0, bytes_read=20.0) == 0.5


def test_gpu_script_runs_on_a_cpu_with_eager_calls_for_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from accelerate.state import AcceleratorState

    jobs: list[tuple[str, ...]] = []

    def in_this_process(job: tuple[str, ...], path: Path, floor: dict[str, float], seconds: float) -> gpu.Found:
        AcceleratorState._reset_state(reset_partial_state=True)
        jobs.append(job)
        assert gpu.main(["--part-alone", *job, "--json", str(path), "--floor", json.dumps(floor)]) == 0
        found: gpu.Found = json.loads(path.read_text())
        path.unlink()
        return found | {"took_seconds": 0.0}

    monkeypatch.setattr(gpu, "in_a_process", in_this_process)
    assert gpu.main(["--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("gpu-*.json")
    report = json.loads(path.read_text())
    checks = report["checks"]
    kinds = ("graph_{}_logits", "packed_{}_logps", "packed_{}_gradients", "sampled_{}", "control_{}")
    assert set(checks) - {"took_seconds"} == {kind.format(name) for kind in kinds for name in ("fp32", "bf16")}
    assert all(checks[name]["error"] > 1e-5 for name in ("graph_bf16_logits", "packed_bf16_gradients"))
    for precision in ("fp32", "bf16"):
        decoded = report["decode"][f"{precision}, 2 rows"]
        # That a rollout costs more than its steps is not told apart where others work, too.
        assert 0 < decoded["share_of_floor"] < 1 and 0 < decoded["stepper_share_of_floor"] < 1
        assert decoded["token_seconds"] == decoded["generate_seconds"] / 6
        assert decoded["share_of_floor"] == decoded["least_seconds"] / decoded["token_seconds"]
        ending = report["decode"][f"{precision}, 2 rows that end"]
        assert all(2 <= way["tokens"] <= 2 * 6 for way in ending.values()) and list(ending) == ["graphs", "leaving"]
        assert 0 < report["update"][f"{precision}, 20 tokens"]["mfu"] < 1.5
        step = report["step"][precision]
        for peer in ("rloo", "grpo"):
            assert step[f"{peer}_ratio"] == pytest.approx(step[f"{peer}_seconds"] / step["ours_seconds"])
        assert step["share_of_floor"] == step["least_seconds"] / step["ours_seconds"]
    assert report["step"]["profile"]["lines"][0]["name"] == "all"
    # Every contender of every precision apart, and their profile.
    assert [job[0] for job in jobs] == ["checks", "decode", "update", *["contender"] * 6, "profile"]
    assert len(set(jobs)) == len(jobs)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:-1] == [line for line in shown if " of 5.0" in line or " of 0.4" in line] and len(shown) == 7


def test_gpu_script_tells_of_a_part_that_failed_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "COMMAND", [sys.executable, "-c", FAILING_AFTER_A_CELL])
    assert gpu.main(["--parts", "decode", "update", "--out", str(tmp_path)]) == 1
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert report["decode"]["failed"] == "RuntimeError: no such kernel"
    assert report["decode"]["bf16, 2 rows"]["GraphStepper"] == {"seconds": 1.0}  # measured before
    assert "failed" not in report["update"] and report["update"]["fp32, 20 tokens"]["seconds"] > 0
    shown = capsys.readouterr().out
    assert "whole step to TRL RLOO, bf16: unmeasured" in shown
    assert "decode: failed: RuntimeError: no such kernel" in shown


def test_what_a_process_had_measured_when_its_time_was_up_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = "import pathlib, sys, time; print('seen at once', flush=True)\n"
    script += "pathlib.Path(sys.argv[3]).write_text('{\"cell\": 1}'); time.sleep(float(sys.argv[1]))"
    monkeypatch.setattr(gpu, "COMMAND", [sys.executable, "-c", script])
    path = tmp_path / "found.json"
    found = gpu.in_a_process(("60",), path, {}, 3.0)
    assert 3.0 <= found.pop("took_seconds") < 50.0
    assert found == {"cell": 1, "failed": "it was stopped after 3 s"}
    assert "seen at once" in capfd.readouterr().err and not path.exists()
    assert "failed" not in gpu.in_a_process(("0",), path, {}, 60.0)
    assert gpu.in_a_process(("0",), path, {}, 0.0) == {"failed": "no time was left to begin"}


def test_a_process_that_dies_without_a_word_is_told_by_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "COMMAND", [sys.executable, "-c", "import os; os.abort()"])
    assert gpu.in_a_process(("decode",), tmp_path / "found.json", {}, 60.0)["failed"] == "it ended with -6"


def test_whatever_failed_and_no_bar_that_is_missed_makes_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = {"bars": {"MFU": {"bar": 0.4, "value": 0.1, "met": False}}}
    good = {"update": {"bf16, 8 tokens": {"mfu": 0.1}}, "step": {"bf16": {"failed": {}, "seconds": {"ours": [None]}}}}
    assert gpu.tell(missed | good, tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[0] == "MFU: not met, 0.1 of 0.4"
    for wrong, line in (
        ({"update": {"bf16, 8 tokens": {"failed": "OutOfMemoryError: …"}}}, "update: bf16, 8 tokens: failed: OutOf"),
        ({"step": {"fp32": {"failed": {"grpo": "ValueError: …"}}}}, "step: fp32: failed: {'grpo': 'ValueError: …'}"),
        ({"checks": {"logits": {"error": 0.2, "ok": False}}}, "checks: logits: not met: {'error': 0.2"),
    ):
        assert gpu.tell(missed | good | wrong, tmp_path) == 1
        assert line in capsys.readouterr().out


def test_bars_of_a_gpu_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROWS", (128, 512))
    report = {
        "step": {"bf16": {"rloo_ratio": 5.5}, "fp32": {"failed": {"rloo": "OutOfMemoryError: …"}}},
        "decode": {"bf16, 128 rows": {"share_of_floor": 0.39}, "bf16, 512 rows": {"share_of_floor": 0.41}},
        "update": {"bf16, 1 tokens": {"mfu": 0.3}, "bf16, 2 tokens": {"mfu": 0.4}, "fp32, 2 tokens": {"failed": "…"}},
    }
    found = gpu.bars(report)
    assert found["whole step to TRL RLOO, bf16"] == {"bar": 5.0, "value": 5.5, "met": True}
    decoded = [found[f"rollout's token to the bandwidth floor, bf16, {rows} rows"]["met"] for rows in (128, 512)]
    assert decoded == [False, True]
    assert found["MFU of the best update, bf16"] == {"bar": 0.4, "value": 0.4, "met": True}
    assert [bar["met"] for name, bar in found.items() if "fp32" in name] == [None] * 4


def test_floors_of_a_gpu_by_hand() -> None:
    """58,608 parameters, 3,072 of them an embedding, two layers with keys of 48; a prompt of 4, 2 responses of 6."""
    read = 58_608 + 2 * 2 * 2 * (4 + 6 / 2) * 48
    assert gpu_works.least_decode_seconds("bf16", 2, {"bytes_per_second": 1e6}) == 2 * read / 1e6
    assert gpu_works.least_decode_seconds("fp32", 2, {"bytes_per_second": 1e6}) == 4 * read / 1e6
    work = replace(WORK, precision="fp32")
    flops = least_flops(work, 58_608, 3_072, 48)
    sampling = 2 * 58_608 * (4 + 2 * 6)
    slow_memory = {"fp32_flops_per_second": 1e9, "bytes_per_second": 1e6}
    reading = 6 * 4 * (58_608 + 2 * 2 * 2 * 7 * 48) / 1e6
    assert gpu_steps.least_step_seconds(work, slow_memory) == pytest.approx(reading + (flops - sampling) / 1e9)
    fast_memory = slow_memory | {"bytes_per_second": 1e15}
    assert gpu_steps.least_step_seconds(work, fast_memory) == pytest.approx(flops / 1e9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_of_a_gpus_workload_end_at_their_chance_whatever_the_precision(precision: str) -> None:
    policy = gpu_works.policy(ends_inside=True)
    ending = partial(gpu_parts.start_ending, partial(start_fused, GraphStepper), 1 / 4)
    with torch.no_grad(), device.autocast(precision):
        stepper = ending(policy, [[5, 6, 7]], 8, 4)
        for token in (3, 9, 9):
            assert stepper.logits_BV.softmax(-1)[:, policy.end_token_id].sub(1 / 4).abs().max() < 1e-4
            stepper.step(torch.full((8,), token))
        rollouts = generate(
            policy, [[5, 6, 7]], SamplingSettings(6), torch.Generator().manual_seed(0), 400, begin=ending
        )
    # (1 - (3/4)^6) / (1/4) tokens are due; the mean of 400 responses is spread by 0.1.
    assert rollouts.num_tokens / 400 == pytest.approx(3.29, abs=0.4)
    assert not stepper.loses_rows


def test_contenders_on_a_gpu_take_turns_and_one_that_fails_leaves_the_others_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_steps, "TURNS", 2)
    asked: list[tuple[str, str]] = []
    kept: list[str] = []

    def run(part: str, *options: str) -> gpu.Found:
        if part == "profile":
            return {"lines": []}
        name, precision = options[1], options[3]
        asked.append((precision, name))
        if name == "rloo" or (name, len(asked)) == ("grpo", 3):
            return {"failed": "OutOfMemoryError: CUDA out of memory.", "took_seconds": 1.0}
        return {"seconds": {"ours": 2.0, "grpo": 9.0}[name], "peak_mib": float(len(asked)), "took_seconds": 1.0}

    found = gpu_steps.whole_steps(["rloo", "grpo"], FLOOR, run, lambda: 100.0, lambda now: kept.append(json.dumps(now)))
    names = ["ours", "rloo", "grpo"]
    assert [name for _, name in asked] == [*names, *names, *names[::-1], *names[::-1]]
    assert len(kept) == 13 and json.loads(kept[-1]) == found
    bf16, fp32 = found["bf16"], found["fp32"]
    assert bf16["seconds"] == {"ours": [2.0, 2.0], "rloo": [None, None], "grpo": [None, 9.0]}
    assert bf16["failed"] == dict.fromkeys(("grpo", "rloo"), "OutOfMemoryError: CUDA out of memory.")
    assert {name for name in bf16 if name.endswith("_ratio")} == {"grpo_ratio"}
    assert bf16["grpo_ratio"] == 4.5 and bf16["ours_seconds"] == 2.0 and "rloo_seconds" not in bf16
    assert bf16["peak_mib"] == {"ours": 9.0, "grpo": 7.0} and list(fp32["failed"]) == ["rloo"]


def test_a_further_turn_begins_only_where_time_is_left_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "TURNS", 2)
    left = 70.0

    def run(part: str, *options: str) -> gpu.Found:
        nonlocal left
        took = 20.0 if "rloo" in options else 5.0
        left -= took
        return {"seconds": took, "took_seconds": took}

    found = gpu_steps.whole_steps(["rloo"], FLOOR, run, lambda: left, lambda _: None)
    # 15 seconds were left after the first turn and the profile: for ours twice, for no RLOO.
    assert found["bf16"]["seconds"] == {"ours": [5.0, 5.0], "rloo": [20.0, None]}
    assert found["fp32"]["seconds"] == {"ours": [5.0, 5.0], "rloo": [20.0, None]}
    assert found["bf16"]["failed"] == {} and found["bf16"]["rloo_ratio"] == 4.0


def test_every_contender_on_a_gpu_is_timed_over_equally_many_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []

    class Step:
        def __init__(self, *_: object) -> None:
            pass

        def seconds(self, count: int) -> float:
            rounds.append(count)
            return 1.0

    monkeypatch.setattr(gpu_steps, "OurStep", Step)
    monkeypatch.setattr(gpu_steps, "PeerStep", Step)
    monkeypatch.setattr(gpu_steps, "ON_GPU", True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 350 * 2**20)
    for name in ("ours", "rloo", "grpo"):
        assert gpu_steps.contender(name, "bf16") == {"seconds": 1.0, "peak_mib": 350.0}
    assert rounds == [gpu_steps.ROUNDS] * 3


def test_a_profile_on_a_gpu_is_of_one_warm_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "PROFILE_LINES", 10_000)
    _, *lines = gpu_steps.round_profile(replace(WORK, precision="fp32"))
    calls = {line["name"]: line["calls"] for line in lines}
    # Two updates of the discriminator, one of the policy, each with and without decay of weights; none are made.
    assert calls["aten::_fused_adamw_"] == 3 * 2 and "aten::normal_" not in calls


def test_a_range_that_spans_kernels_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA

    def event(key: str, microseconds: float, kind: object, marked: bool = False) -> SimpleNamespace:
        times = {"self_device_time_total": microseconds, "self_cpu_time_total": -1.0}
        return SimpleNamespace(key=key, count=2, device_type=kind, is_user_annotation=marked, **times)

    events = [event("gemm", 3000.0, cuda), event("Optimizer.step", 9000.0, cuda, True), event("aten::mm", 3000.0, cpu)]
    recorded = SimpleNamespace(start=lambda: None, stop=lambda: None, key_averages=lambda: [*events])
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: recorded)
    monkeypatch.setattr(device, "ON_GPU", True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    whole, *lines = device.Profiler().stop()
    assert whole["device_seconds"] == 0.003
    assert lines == [{"name": "gemm", "calls": 2, "milliseconds": 3.0}]


def test_a_check_without_a_number_or_with_too_large_an_error_is_not_met() -> None:
    assert gpu_checks._judged(1e-6, "fp32") == {"error": 1e-6, "at_most": 1e-5, "ok": True}
    assert not gpu_checks._judged(1e-4, "fp32")["ok"] and gpu_checks._judged(1e-4, "bf16")["ok"]
    assert not gpu_checks._judged(math.nan, "bf16")["ok"]
    assert chisquare.accepted([0.5, 1e-3]) and not chisquare.accepted([0.5, 4e-5])
    assert chisquare.rejected([1e-9, 4e-5]) and not chisquare.rejected([1e-9, 1e-3])
    assert not chisquare.accepted([0.5, math.nan]) and not chisquare.rejected([1e-9, math.nan])


def test_second_tokens_are_those_after_the_commonest_first_and_rare_ones_share_a_bin() -> None:
    probability_V = torch.cat([torch.full((9,), 0.11), torch.full((10,), 1e-3)])
    firsts = [token for token in range(9) for _ in range(110)] + [*range(9, 19)]
    # 10 rare tokens of 1,000 are too few for a bin of their own, and join a token of which 110 are due.
    with pytest.raises(ValueError, match="1000 tokens fill 9 bins, the least with 110 due"):
        chisquare.p_value(firsts, probability_V)
    assert chisquare.p_value(firsts * 10, probability_V) == pytest.approx(1.0)
    assert chisquare.p_value(firsts[:-10] * 10, probability_V) < 1e-6  # none of the rare ones
    assert math.isnan(chisquare.p_value(firsts * 10, probability_V * math.nan))
    asked: list[list[int]] = []

    def probabilities(tokens: list[int]) -> torch.Tensor:
        asked.append(tokens)
        return probability_V

    # After 3, the commonest that goes on, seconds are as due; after all others they are always 0.
    rows = [[0, 0]] * 900 + [[1]] * 9000 + [[3, token] for token in firsts * 10]
    assert chisquare.p_values(rows, probabilities)[1] == pytest.approx(1.0)
    assert asked == [[], [3]]


def test_what_the_device_was_measured_with_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(device, "ON_GPU", True)
    monkeypatch.setattr(device, "_rates", lambda: told.append("measured") or {})
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.append("freed"))
    assert device.measure_device() == {} and told == ["measured", "freed"]


def test_unknown_suite_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "speed"])
    assert "unknown suites speed; there are sampling, align" in capsys.readouterr().err


def test_our_step_samples_all_tokens_of_the_work() -> None:
    work = Work("0.1M", 2, 2, 8, 8, 64)
    assert OurStep(work).seconds(1) > 0
    assert work.sampled_tokens == 2 * 2 * 8
    config = align_config(Work("1M"), 3)
    # As in params.yaml: two updates of 32 pairs for 96 samples.
    assert config.discriminator.updates_per_round * config.discriminator.batch_pairs == 22
    assert (config.num_rounds, config.discriminator.warmup_rounds) == (3, 0)


def test_a_work_in_one_pass_takes_all_its_rows_at_once_also_in_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work("0.1M", 4, 8, 32, 64, 64)
    assert align_config(work, 1).micro_batch_tokens == 8192  # as params.yaml says
    work = replace(work, micro_batch_tokens=200)  # two rows
    passes: list[int] = []
    divide = AlignState.micro_batches

    def counted(state: AlignState, samples: list[Sample]) -> Iterator[MicroBatch]:
        for micro in divide(state, samples):
            passes.append(micro.batch.num_rows)
            yield micro

    monkeypatch.setattr(AlignState, "micro_batches", counted)
    OurStep(work).run(0)
    assert set(passes) == {2}
    passes.clear()
    OurStep(work.in_one_pass()).run(0)
    assert set(passes) == {32}
    model = create_model("0.1M", 64, 128)
    assert formula_mib(work.in_one_pass(), model) > 2 * formula_mib(work, model)


def test_words_are_tokens_and_the_end_cannot_be_sampled() -> None:
    tokenizer = word_tokenizer(64)
    assert tokenizer(as_text([3, 0, 63]))["input_ids"] == [3, 0, 63]
    policy = create_policy("0.1M", 64, 32)
    assert policy.end_token_id == 64 == policy.model.config.vocab_size
    assert word_tokenizer(64, ends_inside=True).eos_token_id == 62


def test_turns_alternate_their_order_and_ratios_are_of_turns() -> None:
    order: list[str] = []

    def run(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    found = alternate({"a": lambda: run("a", 2.0), "b": lambda: run("b", 4.0)}, 2)
    assert order == ["a", "b", "b", "a"]
    assert found == {"a": [2.0, 2.0], "b": [4.0, 4.0]}
    assert ratio_of_turns([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == {"ratio": 3.0, "ratios": [2.0, 3.0, 4.0]}


def test_exponent_of_a_power() -> None:
    points = [{"at": x, "seconds": 3 * x**1.5} for x in (1.0, 2.0, 8.0)]
    assert exponent(points, "seconds") == pytest.approx(1.5)


def test_a_row_says_that_the_machine_was_busy() -> None:
    row = {"load_average_before": [1.5, 9, 9], "load_average_after": [9.0, 9, 9]}
    assert load_text(row) == "1.5 to 9.0"
    assert load_text(row | {"load_average_before": [1.51, 0, 0]}) == "1.5 to 9.0, busy"


def test_bars_belong_to_their_peer_and_colour_the_ratio() -> None:
    row = {"name": "align step 1M", "peer_name": "TRL RLOO"}
    assert bar_of(row) == 2.0
    assert bar_of(row | {"peer_name": "TRL GRPO"}) is None
    assert [bar_of({"name": f"ingest {rows} rows"}) for rows in ("10,000", "1,000,000")] == [50_000, 50_000]
    row |= {"load_average_before": [2.5, 1, 1], "load_average_after": [1.0, 1, 1]}
    machine = dict.fromkeys(("processor", "threads", "logical_cores", "memory_gib", "matrix_gflops"), 1)
    machine |= dict.fromkeys(("memory_gb_per_second", "torch", "transformers", "trl"), 1) | {"load_average": [0.5]}
    rows = [
        row | {"unit": "u", "ours": 1234.5, "peer": 600.0, "ratio": ratio, "bar": 2.0, "floor": None}
        for ratio in (2.5, 1.5)
    ]
    out = io.StringIO()
    show({"machine": machine, "rows": rows}, Console(file=out, force_terminal=True, width=160))
    text = out.getvalue()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert re.findall(r"2\.0 *│ *(yes|no) ", shown) == ["yes", "no"]
    assert "\x1b[32m2.50" in text and "\x1b[31m1.50" in text and "1,234" in text
    assert "2.5 to 1.0, busy" in text


def test_the_page_is_what_the_raw_numbers_say() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.rendered(text, page.latest(page.RESULTS)), "run `python -m benchmarks.page`"
    assert all(f"<!-- begin {name}:" in text for name in page.BLOCKS)


def test_the_latest_run_counts_and_bars_are_told(tmp_path: Path) -> None:
    machine = json.loads(next(page.RESULTS.glob("cpu-2*.json")).read_text())["machine"]
    row = {"name": "sampling 1M", "unit": "u", "suite": "sampling", "ours": 200.0, "peer": 100.0, "floor": 400.0}
    row |= {"load_average_before": [1, 1, 1], "load_average_after": [2, 1, 1], "bar": 1.4}
    for name, peer, ratio in (
        ("20260101", "generate, dynamic cache", 1.0),
        ("20260102", "generate, static cache", 2.0),
    ):
        rows = [row | {"peer_name": peer, "ratio": ratio, "ratios": [ratio - 0.5, ratio]}]
        (tmp_path / f"cpu-{name}.json").write_text(json.dumps({"machine": machine, "rows": rows}))
    found = page.latest(tmp_path)
    assert [(row["ratio"], row["file"]) for row in found] == [(2.0, "cpu-20260102.json")]
    assert "| 200 | 100 | 2.00 | 2: 1.50 to 2.00 | 1.4 | yes | 400 | 50% | 1.0 to 2.0 |" in page.peers(found)
    assert "**no**" in page.peers([found[0] | {"ratio": 1.3}])
    assert "| 1.6 to 2.0, **busy** |" in page.peers([found[0] | {"load_average_before": [1.6, 1, 1]}])
    assert page.machine([found[0], found[0] | {"suite": "sft"}]).startswith("- `cpu-20260102.json` (sampling, sft): ")
    # Of runs before turns had processes of their own the page says so.
    assert page.machine(found).endswith("; ours and its peers took turns within one process")
    assert page.machine([found[0] | {"process": {}}]).endswith("Z")
    with pytest.raises(ValueError, match="a block 'peer'; there are machine, peers"):
        page.rendered("<!-- begin peer: x -->\n<!-- end -->", found)


def test_least_arithmetic_of_a_step_by_hand() -> None:
    work = Work("1M", prompts=2, repeats=3, prompt_tokens=10, response_tokens=20, discriminator="sft")
    # 6 responses: 140 tokens; two updates of 2 pairs with 10 + 2 * 20 tokens each.
    assert least_flops(work, 1000, 100, 8) == 2 * 1000 * 5 * 140 + 2 * 900 * (140 + 3 * 200)
    # A quarter of 2 pairs rounds to no old sample: the reference reads 2 expert responses; the reader, of width 64 on
    # 2 * 8 features, 6 responses and three times two updates of 2 pairs of responses.
    reader = 16 * 64 + 12 * 64**2
    shared = least_flops(replace(work, discriminator="shared_trunk"), 1000, 100, 8)
    assert shared == 2 * 1000 * (5 * 140 + 2 * 20) + 2 * reader * (120 + 3 * 160)


def test_a_profile_names_phases_and_lines() -> None:
    found = profiling.measure(Work("0.1M", 1, 2, 4, 4, 32), 1)
    assert found["phases"]["sampling"]["where"] == "understudy/training/state.py: AlignState.sample_round"
    assert all(phase["seconds"] > 0 for phase in found["phases"].values()) and len(found["phases"]) == 6
    shares = list(found["operations"].values())
    assert len(shares) == 8 and shares == sorted(shares, reverse=True) and shares[-1] > 0 and sum(shares) <= 1


def test_the_functions_that_the_profiles_name_are_there() -> None:
    profiled = [row for row in page.latest(page.RESULTS) if row["suite"] == "profile"]
    named = {phase["where"] for row in profiled for phase in row.get("phases", {}).values()}
    # A comprehension's line is its function's.
    of_lines = {f"{line['path']}: {line['function']}" for row in profiled for line in row.get("lines", [])}
    assert len(named) >= 6 and len(of_lines) >= 6
    for where in named | of_lines:
        path, _, function = where.partition(".<locals>")[0].partition(": ")
        owner = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        for name in function.split("."):
            owner = getattr(owner, name)
        assert callable(owner) or isinstance(owner, property)


def test_peers_of_sft_pack_in_both_of_trls_ways_and_the_faster_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    takes = {"whole False": 5.0, "cut False": 3.0, "whole True": 2.5, "cut True": 2.8, "ours": 2.0}

    def alone(contender: partial[Turn]) -> Turn:
        asked.append(f"{contender.args[-1]} {contender.args[-2]}" if contender.func is finetuning.peer else "ours")
        return Turn(30, takes[asked[-1]], 0, 0.0, 1)

    monkeypatch.setattr(timing, "alone", alone)
    found = finetuning.measure("0.1M", 4, 2)
    assert sorted(asked) == sorted([*takes] * 2)
    assert [(row["ratio"], row["peer_name"]) for row in found] == [
        (1.5, "TRL SFT, packing cut demonstrations"),
        (1.25, "TRL SFT with freed memory kept, packing whole demonstrations"),
    ]
    # The bars are of TRL as it is.
    assert [bar_of(row | {"name": "SFT 1M"}) for row in found] == [1.2, None]


def test_two_shards_and_one_process_take_turns_on_the_same_rows() -> None:
    found = sharding.measure(300, False, 1)
    assert found["name"] == "300 rows, no near-duplicate search" and len(found["ratios"]) == 1
    assert all(peak > 50 for peak in found["peak_mib"].values())  # a Python with its libraries


def test_shares_are_of_all_operations_not_of_those_shown() -> None:
    shares = profiling.largest_shares({"add": 1, "matmul": 6, "copy": 3}, 2)
    assert list(shares.items()) == [("matmul", 0.6), ("copy", 0.3)]
