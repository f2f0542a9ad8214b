"""Ingest over several pods: the compiled loop, and a run of it by kfp.local that ends in the version of one process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.checks import pipelines as checks
from pipelines.compile import compile_pipeline
from understudy.config import DataConfig, load_params
from understudy.errors import ConfigError, DataRefused, IntegrityError, UnderstudyError
from understudy.platform.steps import ingest_shards
from understudy.platform.steps.ingest import ingest_source

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny" / "demonstrations.jsonl"
SETTINGS: dict[str, Any] = {
    "max_prompt_chars": 500,
    "max_response_chars": 500,
    "max_bad_fraction": 0.1,
    "near_duplicate_threshold": 0.9,
    "splits": {"validation": 0.1, "test": 0.2},
    "unicode_form": "keep",
}
RUN = """
import json, os, sys
from kfp import dsl, local
from pipelines.retrain import ingested

@dsl.component(base_image="fake/python", install_kfp_package=False)
def checked() -> str:
    return "checked"

@dsl.pipeline(name="fan-out")
def fan_out(ingest_config: dict):
    ingested(ingest_config, checked().output, lambda step, task: None, 3)

local.init(
    local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1] + "/kfp", raise_on_error=True,
    workspace_root=sys.argv[1] + "/ws", cache_root=sys.argv[1] + "/cache",
)
fan_out(ingest_config=json.loads(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("UNDERSTUDY_", "MLFLOW_", "AWS_", "DVC_")):
            monkeypatch.delenv(name)


def write_source(folder: Path, num_files: int = 5) -> Path:
    lines = [*TINY.read_bytes().splitlines()[:60], b"not JSON", b'{"prompt": "p", "response": "r", "id": "tiny-0001"}']
    random.Random(0).shuffle(lines)
    folder.mkdir()
    for index in range(num_files):
        (folder / f"{index}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines[index::num_files]))
    return folder


def test_the_compiled_loop_has_so_many_shards_and_its_pods_are_those_of_ingest() -> None:
    params = load_params(ROOT / "params.yaml", ["platform.steps.ingest.shards=4", "platform.steps.ingest.memory=3Gi"])
    compiled = compile_pipeline(params.platform)
    spec = next(yaml.safe_load_all(compiled.ir))
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    (loop,) = [task for task in tasks.values() if "parameterIterator" in task]
    assert json.loads(loop["parameterIterator"]["items"]["raw"]) == [0, 1, 2, 3]
    assert loop["dependentTasks"] == ["preflight"]
    (part,) = spec["components"][loop["componentRef"]["name"]]["dag"]["tasks"].values()
    assert part["inputs"]["parameters"]["count"]["runtimeValue"]["constant"] == 4
    assert part["inputs"]["parameters"]["index"]["componentInputParameter"] == loop["parameterIterator"]["itemInput"]
    merge = tasks["ingest-merge"]
    assert merge["inputs"]["parameters"]["shards"]["taskOutputParameter"]["producerTask"] in tasks
    assert tasks["sft"]["dependentTasks"] == ["ingest-merge"] and "ingest" not in tasks
    # Looked at each time, like ingest: the source may have changed.
    assert not part["cachingOptions"] and not merge["cachingOptions"]
    assert list(checks.cpu_steps(compiled.version)) == [] and list(checks.protobuf(compiled.version)) == []
    platforms = compiled.version["spec"]["platformSpec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    containers = compiled.version["spec"]["pipelineSpec"]["deploymentSpec"]["executors"]
    for name in ("exec-ingest-shard", "exec-ingest-merge"):
        assert platforms[name]["podMetadata"]["labels"]["understudy.dev/step"] == "ingest"
        assert containers[name]["container"]["resources"]["resourceMemoryLimit"] == "3Gi"


def test_a_run_over_the_loop_makes_the_version_of_one_process(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    alone = ingest_source(DataConfig(source=str(source), **SETTINGS), tmp_path / "alone")
    config = {"step": "ingest", "seed": 7, "code_sha256": "c", "source_sha256": "", "data": {"source": str(source)}}
    config["data"] |= SETTINGS  # type: ignore[operator]
    # A file, for kfp reads the source of a component.
    script = tmp_path / "fan_out.py"
    script.write_text(RUN)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), json.dumps(config)],
        cwd=ROOT,
        env=os.environ | {"UNDERSTUDY_WORKDIR": str(tmp_path / "w"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = json.loads((tmp_path / "w" / "dataset.json").read_text())
    assert (record["md5"], record["rows"], record["source_sha256"]) == (
        alone.ref.md5, alone.ref.rows, alone.ref.source_sha256,
    )  # fmt: skip
    assert (tmp_path / "w" / "quarantine.jsonl").read_bytes() == alone.quarantine.read_bytes() != b""
    assert len(list((tmp_path / "w" / "store" / "ingest-shards").iterdir())) == 3


def test_processes_make_the_version_of_one_and_more_than_files_are_not_started(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 2)
    config = DataConfig(source=str(source), **SETTINGS)
    alone = ingest_source(config, tmp_path / "alone")
    together = ingest_source(config, tmp_path / "together", shards=7)
    assert together.ref.md5 == alone.ref.md5
    assert together.quarantine.read_bytes() == alone.quarantine.read_bytes() != b""
    assert not (tmp_path / "together" / "tmp").exists()


def test_what_a_process_refuses_is_said_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "source", 2)
    (source / "1.jsonl").write_bytes(b"PAR1 and no more")
    config = DataConfig(source=str(source), **SETTINGS)
    with pytest.raises(DataRefused, match=r"1\.jsonl is truncated or damaged"):
        ingest_source(config, tmp_path / "w", shards=2)
    assert not (tmp_path / "w" / "tmp").exists()
    with pytest.raises(ConfigError, match="number of shards is 0"):
        ingest_source(config, tmp_path / "w", shards=0)


def test_a_process_that_was_killed_is_told_from_one_that_refused(tmp_path: Path) -> None:
    with pytest.raises(UnderstudyError, match="process of shard 3 ended with -9 and without a word.*fewer shards"):
        raise ingest_shards._error_of(tmp_path, 3, -9)


def test_a_shard_that_is_not_what_its_record_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path / "w"))
    source = write_source(tmp_path / "source", 2)
    config = {"data": SETTINGS | {"source": str(source)}}
    refs = [ingest_shards.run_shard(config, index, 2) for index in range(2)]
    assert [(ref.index, ref.count) for ref in refs] == [(0, 2), (1, 2)]
    assert (sum(ref.rows for ref in refs), sum(ref.bad for ref in refs)) == (61, 1)
    texts = [json.dumps(ref.to_json()) for ref in refs]
    with pytest.raises(IntegrityError, match=r"Shards \[0\] of \[2\] are there"):
        ingest_shards.run_merge(config, texts[:1])
    (Path(refs[1].uri) / "shard.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"shard\.json"):
        ingest_shards.run_merge(config, texts)
