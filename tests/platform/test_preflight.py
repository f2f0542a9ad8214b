"""Preflight: every problem at once, services named, nothing heavy imported."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.arguments import arguments
from understudy.config import Params, load_params
from understudy.data.files import file_sha256
from understudy.errors import ConfigError, ServiceUnreachable
from understudy.evaluation.judges import load_judge
from understudy.platform.code_hash import folder_sha256, target_sha256
from understudy.platform.steps import from_kfp, preflight

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(tmp_path / "run"))
    for name in ("MLFLOW_TRACKING_URI", "UNDERSTUDY_STORAGE_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    source = ROOT / "examples" / "tiny" / "demonstrations.jsonl"
    return load_params(ROOT / "params.yaml", [f"data.source={source}"]).model_dump(mode="json")


def test_a_good_config_passes_with_a_constant_word(config: dict[str, Any]) -> None:
    assert preflight.run(config) == "ok"


def test_all_problems_come_at_once(config: dict[str, Any]) -> None:
    config["data"]["source"] = "absent.jsonl"
    config["evaluation"]["judges"][0]["target"] = "absent.py:judge"
    config["align"]["divergence"] = "reverse_kll"
    config["evaluation"]["max_response_tokens"] = 4096
    config["sft"]["epoch"] = 3
    with pytest.raises(ConfigError) as raised:
        preflight.run(config)
    for part in ("absent.jsonl", "absent.py", "reverse_kll", "4096", "did you mean 'epochs'"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    "written", [{"max_seq_len": 64}, {"text_config": {"max_position_embeddings": 64}, "n_ctx": 9999}]
)
def test_a_pretrained_models_context_is_found_under_each_of_its_names(
    written: dict[str, Any], config: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    config["model"] |= {"init": "pretrained", "path": str(folder), "scratch": None}
    with pytest.raises(
        ConfigError, match=r"evaluation.max_response_tokens is \d+, the model's context holds 64 tokens"
    ):
        preflight.run(config)


def test_a_tilde_is_expanded_once_for_preflight_for_digests_and_for_loading(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "judge.py").write_text("def judge(prompt, response, reference): return 1.0")
    judges = [
        {"name": "rm", "kind": "reward_model", "target": "~/m"},
        {"name": "validity", "kind": "callable", "target": "~/judge.py:judge"},
        {"name": "pattern", "kind": "regex", "target": "~/m"},
    ]
    config["model"] |= {"init": "pretrained", "path": "~/m"}
    config["evaluation"]["judges"] = judges
    params = Params.model_validate(config)
    assert params.model.path == f"{tmp_path}/m"
    targets = [judge.target for judge in params.evaluation.judges]
    assert targets == [f"{tmp_path}/m", f"{tmp_path}/judge.py:judge", "~/m"]
    assert load_judge(params.evaluation.judges[1]).scores(["p"], ["r"], ["r"]) == [1.0]
    given = from_kfp(arguments(params, lambda source: None)["evaluate_config"])
    digests = given["judges_sha256"]
    assert given["base_sha256"] == digests["rm"] == folder_sha256(tmp_path / "m")
    assert digests["validity"] == file_sha256(tmp_path / "judge.py") and digests["pattern"] is None
    assert preflight.run(config) == "ok"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("def judge(): ...", None),
        ("async def judge(): ...", None),
        ("class judge: ...", None),
        ("from functools import partial\njudge = partial(max, 1)", None),
        ("try:\n    from a import score as judge\nexcept ImportError:\n    judge = None", None),
        ("from a import *", None),
        ("def judge_v2(): ...\nimport os.path", "'judge.py' has no function 'judge'; it names judge_v2, os"),
        ("class A:\n    def judge(): ...", "'judge.py' has no function 'judge'; it names A"),
        ("def judge(:", "'judge.py' is not Python: invalid syntax"),
    ],
)
def test_a_judge_is_a_name_at_the_top_of_its_file(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, problem: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.py").write_text(code)
    config["evaluation"]["judges"][0]["target"] = "judge.py:judge"
    if problem is None:
        assert preflight.run(config) == "ok"
    else:
        with pytest.raises(ConfigError, match=problem):
            preflight.run(config)


def test_a_judge_of_the_project_is_found_from_elsewhere(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = config["evaluation"]["judges"][0]["target"]
    file, _, _ = target.partition(":")
    monkeypatch.chdir(tmp_path)
    assert preflight.run(config) == "ok"
    assert target_sha256(target) == file_sha256(ROOT / file)


def test_an_unreachable_service_is_exit_5_within_seconds(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ServiceUnreachable, match="http://127.0.0.1:9") as raised:
        preflight.run(config)
    assert raised.value.exit_code == 5 and time.monotonic() - started < 10


def test_it_imports_neither_torch_nor_mlflow(config: dict[str, Any]) -> None:
    code = (
        "import json, sys; from understudy.platform.steps import preflight; preflight.run(json.loads(sys.argv[1]));"
        "print(sorted({'torch', 'mlflow', 'transformers'} & set(sys.modules)))"
    )
    import json

    done = subprocess.run([sys.executable, "-c", code, json.dumps(config)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_gpu_that_is_not_there_is_refused_on_this_machine_alone(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("UNDERSTUDY_DEVICE", "cuda")
    assert preflight.run(config) == "ok"  # in a pod: the training's GPU is another's
    monkeypatch.setenv("UNDERSTUDY_RUNNER_PID", "1")
    monkeypatch.setattr("understudy.platform.context.leave_quickly_when_done", lambda: None)
    with pytest.raises(
        ConfigError, match=r"runtime.device \(UNDERSTUDY_DEVICE\) is cuda, but PyTorch .* can use no GPU"
    ):
        preflight.run(config)


def test_sections_that_contradict_each_other_are_named_both(config: dict[str, Any]) -> None:
    config["align"]["min_held_out_auc"] = 0.6
    config["data"]["splits"]["validation"] = 0.0
    config["align"]["demonstrations"] = "withheld"
    with pytest.raises(ConfigError, match=r"align.min_held_out_auc is 0.6 but data.splits.validation is 0") as raised:
        preflight.run(config)
    assert "align.demonstrations is withheld but sft.withheld_fraction is 0" in str(raised.value)


def test_a_policy_that_will_not_fit_is_a_warning_on_this_machine(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERSTUDY_RUNNER_PID", "1")
    monkeypatch.setattr("understudy.platform.context.leave_quickly_when_done", lambda: None)
    monkeypatch.setattr("understudy.platform.steps.preflight.available_here", lambda device: 2**20)
    assert preflight.run(config) == "ok"
    assert "Warning: align needs about" in capsys.readouterr().out
