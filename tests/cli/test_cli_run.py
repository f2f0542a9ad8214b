"""`understudy run` as a person meets it: what it refuses and with which exit code, what it prints, what it re-runs."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.tiny import ROOT, run_command, run_pipeline

from understudy.cli.live import LiveView, shown_text
from understudy.cli.numbers import duration, number
from understudy.cli.summary import look_further, metrics_table, print_summary, short_verdict
from understudy.config import load_params
from understudy.platform.events import read_events
from understudy.platform.local_run import RunResult
from understudy.platform.registry import Registry

STEPS = ["preflight", "ingest", "sft", "align", "sft_longer", "evaluate", "register"]
CLOSED = "http://127.0.0.1:9"  # the discard port: nothing listens


def understudy(workdir: Path, *overrides: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return run_pipeline(workdir, *overrides, options=options)


@pytest.mark.parametrize(
    ("overrides", "code", "said"),
    [
        (("sft.epoch=2", "aling.num_rounds=1"), 2, ("epochs", "align")),
        (("data.source=absent.jsonl",), 2, ("absent.jsonl",)),
        (("model.init=pretrained", "model.path=./absent"), 2, ("./absent", "does not exist")),
        (("evaluation.max_response_tokens=96",), 2, ("evaluation.max_response_tokens is 96", "96 tokens")),
        ((f"tracking.uri={CLOSED}",), 5, (CLOSED,)),
        (("storage.uri=s3://bucket/understudy", f"storage.endpoint_url={CLOSED}"), 5, ("s3://bucket",)),
    ],
    ids=["keys", "source", "model", "context", "mlflow", "s3"],
)
def test_a_refusal_has_its_exit_code_names_the_cause_and_leaves_no_result(
    tmp_path: Path, overrides: tuple[str, ...], code: int, said: tuple[str, ...]
) -> None:
    started = time.monotonic()
    done = understudy(tmp_path / "w", *overrides)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert all(words in done.stderr for words in said), done.stderr
    assert time.monotonic() - started < 60
    assert not list(tmp_path.glob("w/store/*/*")) and not list(tmp_path.glob("w/datasets/*"))


def test_a_missing_params_file_is_named(tmp_path: Path) -> None:
    done = understudy(tmp_path, options=("--params", "nowhere.yaml"))
    assert done.returncode == 2 and "nowhere.yaml" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"), [("", "holds no rows at all"), ("{\n" * 40, "All 40 rows of")], ids=["empty", "bad"]
)
def test_data_that_cannot_be_used_ends_with_3(tmp_path: Path, text: str, said: str) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(text)
    done = understudy(tmp_path / "w", f"data.source={source}")
    assert done.returncode == 3 and said in done.stderr, done.stderr
    assert not list(tmp_path.glob("w/datasets/*")) and not list(tmp_path.glob("w/store/*/*"))


def test_a_workdir_in_use_names_who_uses_it(tmp_path: Path) -> None:
    with (tmp_path / "run.lock").open("w") as file:
        file.write(json.dumps({"pid": 4242, "since": "10:00:00"}))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        done = understudy(tmp_path)
    assert done.returncode == 2 and "in use by process 4242" in done.stderr


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    workdir = tmp_path_factory.mktemp("run") / "w"
    done = understudy(workdir, options=("--json",))
    assert done.returncode == 0, done.stderr
    return workdir, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_runs_again_follows_from_what_changed(first_run: tuple[Path, dict[str, Any]]) -> None:
    workdir, first = first_run
    assert set(first) == {"run_id", "run_dir", "seconds", "step_seconds", "working_seconds", "cached", "records"}
    assert first["cached"] == [] and list(first["step_seconds"]) == [*STEPS[:5], "champion", *STEPS[5:], "notify"]
    for step in ("sft", "align", "sft_longer", "evaluate"):
        assert 0 < first["working_seconds"][step] < first["step_seconds"][step]
    assert sum(first["step_seconds"].values()) < first["seconds"]
    assert first["records"]["register"]["entry"]["alias"] == "challenger"
    same = json.loads(understudy(workdir, options=("--json",)).stdout)
    assert same["cached"] == STEPS and same["seconds"] < 60 and list(same["step_seconds"]) == ["champion", "notify"]
    assert same["records"]["register"]["entry"]["version"] == first["records"]["register"]["entry"]["version"] == "1"
    report = "evaluation.samples_shown=3"
    evaluated = json.loads(understudy(workdir, report, options=("--json",)).stdout)
    assert set(STEPS) - set(evaluated["cached"]) - {"preflight"} == {"evaluate", "register"}
    # Before another model is trained the first becomes champion, and the evaluation measures both.
    Registry(f"sqlite:///{workdir}/mlflow.db", workdir).client.set_registered_model_alias("tiny", "champion", "1")
    aligned = json.loads(understudy(workdir, "align.num_rounds=3", options=("--json",)).stdout)
    policies = aligned["records"]["evaluate"]["report"]["policies"]
    assert policies["champion"] == first["records"]["align"]["policy"]["sha256"] != policies["aligned"]
    assert set(STEPS) - set(aligned["cached"]) - {"preflight"} == {"align", "sft_longer", "evaluate", "register"}


def interrupted_in_sft(workdir: Path, run: int) -> tuple[list[int], str]:
    """Start a long SFT, send Ctrl-C once it makes steps; return the steps it told of, and its output."""
    process = subprocess.Popen(
        run_command(workdir, "sft.epochs=4000"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not (told := steps_told(workdir, run)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    told = steps_told(workdir, run)
    return told, said


def steps_told(workdir: Path, run: int) -> list[int]:
    paths = sorted(workdir.glob("runs/*/events.jsonl"))
    events = read_events(paths[run]) if len(paths) > run else []
    return [event["done"] for event in events if event["step"] == "sft" and event["kind"] == "progress"]


@pytest.mark.slow
def test_ctrl_c_ends_with_75_and_the_same_command_resumes(tmp_path: Path) -> None:
    first, said = interrupted_in_sft(tmp_path, run=0)
    assert "same command again to resume" in said and "Traceback" not in said
    second, _ = interrupted_in_sft(tmp_path, run=1)
    assert second[0] > first[-1] > 0


def value(middle: float, around: float = 0.1) -> dict[str, float]:
    return {"value": middle, "low": middle - around, "high": middle + around, "n": 9}


def metrics() -> dict[str, Any]:
    sampled = {"judge_validity": value(0.5), "classifier_auc": value(0.75), "distinct_1": value(0.3)}
    nothing = {"judge_exact_match": value(0, 0)}
    policies = {
        name: {"T=1": sampled | nothing, "tuned": sampled | nothing, "expert_text": {"nll": value(1.5)}}
        for name in ("sft", "aligned", "sft_longer")
    }
    return policies | {"expert": {"expert_text": {"judge_validity": value(0.9), "judge_exact_match": value(1, 0)}}}


@pytest.mark.parametrize(("width", "columns"), [(60, 4), (80, 6), (100, 7)])
def test_the_table_fits_and_leaves_out_what_decides_nothing(width: int, columns: int) -> None:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    table = metrics_table(metrics(), width)
    console.print(table)
    text = console.export_text()
    assert len(table.columns) == columns
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width and "…" not in text
    assert "0.400–0.600" in text and "NLL, T=1" in text
    assert "exact match" not in text and "distinct 1" not in text


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (60, ["", "SFT\ntuned", "aligned\ntuned", "champion\ntuned"]),
        (80, ["", "SFT\ntuned", "SFT longer\ntuned", "aligned\nT=1", "aligned\ntuned", "champion\ntuned"]),
    ],
)
def test_a_champion_that_was_evaluated_has_its_column(width: int, headings: list[str]) -> None:
    with_champion = metrics() | {"champion": {"tuned": {"judge_validity": value(0.7)}, "expert_text": {}}}
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    table = metrics_table(with_champion, width)
    assert [column.header for column in table.columns] == headings
    console.print(table)
    text = console.export_text()
    assert "0.700" in text and "0.600–0.800" in text and "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_the_end_says_verdict_report_model_and_next_command(tmp_path: Path) -> None:
    console = Console(width=60, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    report = {"metrics": metrics(), "verdict": "No difference. A vs B: 51.3% (x). C. D is left out.", "uri": "u"}
    entry = {"name": "mine", "version": "3", "alias": "challenger"}
    records = {"evaluate": {"report": report}, "register": {"entry": entry}}
    result = RunResult("r", tmp_path, 75.0, {"align": 40.0}, {"align": 30.0}, records, ("sft",))
    print_summary(console, result, 7, "runs/r/report.html")
    text = console.export_text()
    assert "mine version 3, alias challenger" in text and "runs/r/report.html" in text
    said = "1m15s, 45s of it outside training, sampling and scoring, 1 of 7 steps from the cache"
    assert said in " ".join(text.split()) and "understudy model show mine" in text
    assert "left out" not in text


def test_the_next_command_works_from_where_the_run_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = tmp_path / ".understudy" / "runs" / "r"
    assert look_further("mine", here, None) == "understudy model show mine"
    assert look_further("my model", here, None) == "understudy model show 'my model'"
    other = Path("a b/runs/r")
    assert look_further("mine", other, None) == "understudy model show mine --workdir 'a b'"
    server = "http://mlflow:5000"
    assert look_further("mine", other, server) == f"MLFLOW_TRACKING_URI={server} understudy model show mine"
    assert look_further("mine", other, "http://me:secret@mlflow") == "understudy model show mine"


def test_numbers_and_durations_are_said_one_way() -> None:
    said = [number(x) for x in (0, 0.0004, 0.15333, -0.02, 1.5, 57.05, 139.48, 22942.3, None)]
    assert said == ["0", "0", "0.153", "-0.020", "1.50", "57.0", "139", "22,942", "–"]
    assert [duration(x) for x in (0.04, 9.96, 59.7, 185, 7800)] == ["0.0s", "10s", "1m00s", "3m05s", "2h10m"]
    assert short_verdict("A at 0.5 wins. B. C? D.") == "A at 0.5 wins. B. C?"


def test_the_view_counts_a_steps_start_and_says_what_is_left() -> None:
    console = Console(width=60, force_terminal=True, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    view = LiveView(load_params(ROOT / "params.yaml"), console=console)
    now = time.time()
    progress = {"step": "sft", "kind": "progress", "total": 100, "unit": "steps", "shown": {"loss": 2.0}}
    view.update(
        [
            {"t": now - 20, "step": "preflight", "kind": "cached", "seconds": 0.0, "records": {}},
            {"t": now - 20, "step": "sft", "kind": "start"},
            {"t": now - 15, "step": "sft", "kind": "start", "pid": 1},
            {"t": now - 10, "done": 10, **progress},
            {"t": now, "done": 60, **progress},
        ]
    )
    console.print(view.render())
    text = console.export_text()
    assert "20s" in text and "60/100 steps · 8.0s left" in text and "loss 2.00" in text and "cached" in text
    view.update([{"t": now, "step": "sft", "kind": "finish", "seconds": 15.0, "record": None}])
    assert view.steps["sft"].state == "running"  # its result is not stored yet
    view.update([{"t": now, "step": "sft", "kind": "finish", "seconds": 21.0, "records": {"policy": {}}}])
    assert (view.steps["sft"].state, view.steps["sft"].seconds) == ("done", 21.0)


def test_the_view_rests_on_an_empty_line_and_breaks_between_numbers() -> None:
    written = io.StringIO()
    console = Console(width=60, force_terminal=True, file=written)
    view = LiveView(load_params(ROOT / "params.yaml"), console=console)
    shown = {"loss": 2.0, "tokens_per_second": 22000.0, "validation_nll": 1.5, "kl_to_reference": 0.3}
    now = time.time()
    with view:
        view.update([{"t": now, "step": "sft", "kind": "start"}])
        view.update(
            [{"t": now, "step": "sft", "kind": "progress", "done": 1, "total": 9, "unit": "steps", "shown": shown}]
        )
        # A ^C is echoed where the cursor is; at the end of a full line it would move the view down by one.
        assert re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue()).rsplit("\n", 1)[1] == ""
    lines = shown_text(shown, 39).split("\n")
    assert lines == ["loss 2.00  tokens/s 22,000", "val NLL 1.50  kl to reference 0.300"]
    assert all(line in written.getvalue() for line in lines)
    assert shown_text(shown) == "  ".join(lines)
