"""The benchmarks run, and their arithmetic is right; what they measure is not asserted."""

from __future__ import annotations

import importlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import finetuning, gpu, page, profiling, sharding
from benchmarks.__main__ import bar_of, main
from benchmarks.aligning import OurStep, Work, align_config, least_flops
from benchmarks.scaling import exponent
from benchmarks.subjects import as_text, create_policy, word_tokenizer
from benchmarks.table import show
from benchmarks.timing import alternate, ratio_of_turns


def test_quick_run_prints_a_table_and_keeps_the_raw_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--only", "sampling,ingest", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("cpu-quick-*.json")
    report = json.loads(path.read_text())
    assert [row["name"] for row in report["rows"]] == [
        "sampling 0.1M",
        "ingest 500 rows",
        "ingest 500 rows with near-duplicate search",
    ]
    assert all(row["ours"] > 0 and len(row["load_average_before"]) == 3 for row in report["rows"])
    assert report["machine"]["threads"] == 1 and report["machine"]["matrix_gflops"] > 0
    shown = capsys.readouterr().out
    assert "sampling 0.1M" in shown and "GFLOP/s in a matrix product" in shown


def test_steps_and_sft_run_beside_trls_trainers(tmp_path: Path) -> None:
    # PeerStep counts what a TRL trainer sampled: another length than ours, or none, fails there.
    assert main(["--quick", "--only", "align,sft", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("cpu-quick-*.json")
    rows = json.loads(path.read_text())["rows"]
    steps = [(name, f"TRL {peer}") for name in ("", ", trunk of its own") for peer in ("RLOO", "GRPO")]
    assert [(row["name"], row["peer_name"]) for row in rows[:4]] == [
        (f"align step 0.1M{name}", by) for name, by in steps
    ]
    assert rows[4]["name"] == "SFT 0.1M" and rows[4]["peer_name"].startswith("TRL SFT, packing ")
    assert all(row["peer"] > 0 and row["ratio"] == pytest.approx(row["ours"] / row["peer"]) for row in rows)


def test_gpu_script_runs_on_a_cpu_with_eager_calls_for_the_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("gpu-*.json")
    report = json.loads(path.read_text())
    assert report == json.loads(capsys.readouterr().out)
    checks = report["checks"]
    assert all(checks[name] < 1e-5 for name in ("graph_fp32_logits", "packed_fp32_logps", "packed_fp32_gradients"))
    assert all(1e-5 < checks[name] < 0.05 for name in ("graph_bf16_logits", "packed_bf16_gradients"))
    assert checks["sampled_p"] > 1e-3  # the seed is fixed
    for precision in ("fp32", "bf16"):
        assert report["decode"][f"{precision}, 2 rows"]["share_of_floor"] < 1
        assert 0 < report["update"][f"{precision}, 20 tokens"]["mfu"] < 1.5
        step = report["step"][precision]
        for peer in ("rloo", "grpo"):
            assert step[f"{peer}_ratio"] == pytest.approx(step[f"{peer}_seconds"] / step["ours_seconds"])


def test_gpu_script_tells_of_a_part_that_failed_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "start_fused", broken)
    assert gpu.main(["--parts", "decode", "update", "--out", str(tmp_path)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["decode"]["failed"] == "RuntimeError: no such kernel" and "failed" not in report["update"]


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

    found = alternate({"a": lambda: run("a", 2.0), "b": lambda: run("b", 4.0)}, 2, warm_up=False)
    assert order == ["a", "b", "b", "a"]
    assert found == {"a": [2.0, 2.0], "b": [4.0, 4.0]}
    assert ratio_of_turns([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == {"ratio": 3.0, "ratios": [2.0, 3.0, 4.0]}


def test_exponent_of_a_power() -> None:
    points = [{"at": x, "seconds": 3 * x**1.5} for x in (1.0, 2.0, 8.0)]
    assert exponent(points, "seconds") == pytest.approx(1.5)


def test_bars_belong_to_their_peer_and_colour_the_ratio() -> None:
    row = {"name": "align step 1M", "peer_name": "TRL RLOO"}
    assert bar_of(row) == 2.0
    assert bar_of(row | {"peer_name": "TRL GRPO"}) is None
    machine = dict.fromkeys(("processor", "threads", "logical_cores", "memory_gib", "matrix_gflops"), 1)
    machine |= dict.fromkeys(("memory_gb_per_second", "torch", "transformers", "trl"), 1) | {"load_average": [0.5]}
    rows = [
        row | {"unit": "u", "ours": 1234.5, "peer": 600.0, "ratio": ratio, "bar": 2.0, "floor": None}
        for ratio in (2.5, 1.5)
    ]
    out = io.StringIO()
    show({"machine": machine, "rows": rows}, Console(file=out, force_terminal=True, width=160))
    text = out.getvalue()
    assert "\x1b[32m2.50" in text and "\x1b[31m1.50" in text and "1,234" in text


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


def test_the_functions_that_the_profile_names_are_there() -> None:
    named = {
        phase["where"]
        for row in page.latest(page.RESULTS)
        if row["suite"] == "profile"
        for phase in row["phases"].values()
    }
    assert len(named) >= 6
    for where in named:
        path, _, function = where.partition(": ")
        owner = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        for name in function.split("."):
            owner = getattr(owner, name)
        assert callable(owner)


def test_peers_of_sft_pack_in_both_of_trls_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def peer(size: str, examples: object, packing: str) -> float:
        asked.append(packing)
        return {"whole": 5.0, "cut": 3.0}[packing]

    monkeypatch.setattr(finetuning, "_peer", peer)
    monkeypatch.setattr(finetuning, "_ours", lambda *_: 2.0)
    found = finetuning.measure("0.1M", 4, 2, 1e9)
    assert sorted(asked) == ["cut", "cut", "whole", "whole"]
    assert found["ratio"] == 1.5 and found["peer_name"] == "TRL SFT, packing cut demonstrations"


def test_two_shards_and_one_process_take_turns_on_the_same_rows() -> None:
    found = sharding.measure(300, False, 1)
    assert found["name"] == "300 rows, no near-duplicate search" and len(found["ratios"]) == 1
    assert all(peak > 50 for peak in found["peak_mib"].values())  # a Python with its libraries


def test_shares_are_of_all_operations_not_of_those_shown() -> None:
    shares = profiling.largest_shares({"add": 1, "matmul": 6, "copy": 3}, 2)
    assert list(shares.items()) == [("matmul", 0.6), ("copy", 0.3)]
