"""`understudy run` with a model or data that only the whole pipeline can judge: what ends it, where, and how."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from support.small_policy import write_small_policy
from support.tiny import ROOT, run_pipeline
from transformers import PreTrainedTokenizerFast

from understudy import cli
from understudy.platform.events import read_events

pytestmark = pytest.mark.slow


def steps_begun(workdir: Path) -> list[str]:
    (run,) = (workdir / "runs").iterdir()
    return list(dict.fromkeys(event["step"] for event in read_events(run / "events.jsonl") if event["kind"] == "start"))


def test_a_tokenizer_without_eos_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    model = write_small_policy(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json")).save_pretrained(model)
    done = run_pipeline(tmp_path / "w", "model.init=pretrained", f"model.path={model}")
    assert done.returncode == 2 and "has no EOS token" in done.stderr, done.stderr
    assert [step for step in steps_begun(tmp_path / "w") if step != "notify"] == ["preflight"]


def test_a_loss_that_is_no_number_stops_before_the_update_and_names_the_rows(tmp_path: Path) -> None:
    model = write_small_policy(tmp_path / "model")
    (path,) = model.glob("*.safetensors")
    weights = load_file(path)
    next(tensor for name, tensor in weights.items() if "mlp" in name)[0, 0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    done = run_pipeline(tmp_path / "w", "model.init=pretrained", f"model.path={model}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "sft step 0, rows ['tiny-" in done.stderr and "loss is nan" in done.stderr
    assert "nothing was updated" in done.stderr
    assert not list((tmp_path / "w/store/policy").glob("*"))


def test_test_rows_beyond_the_context_are_refused_before_training_not_after(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (ROOT / "examples/tiny/demonstrations.jsonl").open(encoding="utf-8")]
    lengthened = 0
    for number, row in enumerate(rows):
        if "prompt" in row and lengthened < 15:
            row["prompt"] = f"{number} " + "word " * 90
            lengthened += 1
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    done = run_pipeline(tmp_path / "w", f"data.source={source}")
    assert done.returncode == 3, done.stderr
    assert "4 of 62 demonstrations cannot be given to the model (allowed: 5%)" in done.stderr
    assert [step for step in steps_begun(tmp_path / "w") if step != "notify"] == ["preflight", "ingest", "sft"]
    assert not list((tmp_path / "w/store/policy").glob("*"))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, typer.Abort])
def test_ctrl_c_before_the_first_step_says_how_to_resume(interruption, monkeypatch, capsys):
    def interrupted(*_):
        raise interruption

    monkeypatch.setattr("understudy.cli.run.load_params", interrupted)
    monkeypatch.setattr(sys, "argv", ["understudy", "run"])
    assert cli.call(["run"]) == 75
    assert capsys.readouterr().err == "Interrupted. Run the same command again to resume.\n"
