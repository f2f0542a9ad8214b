"""Ingest over several pods: the compiled loop, and a run of it by kfp.local that ends in the version of one process."""

from __future__ import annotations

import json
import os
import random
import shutil
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
from understudy.platform.steps import for_kfp, ingest_shards
from understudy.platform.steps.ingest import ingest_source
from understudy.platform.storage import open_store

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny" / "demonstrations.jsonl"
SETTINGS: dict[str, Any] = {
    "max_prompt_chars": 500,
    "max_response_chars": 500,
    "max_bad_fraction": 0.1,
    "near_duplicate_threshold": 0.9,
    "splits": {"validation": 0.1, "test": 0.2},
    "unicode_form": "keep",
    "fields": None,
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
    config["data"] |= for_kfp(SETTINGS)  # type: ignore[operator]
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


def test_processes_share_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "source", 1) / "0.jsonl"
    config = DataConfig(source=str(source), **SETTINGS)
    alone = ingest_source(config, tmp_path / "alone")
    read: list[int] = []
    run = ingest_shards._run_processes

    def run_and_count(config: DataConfig, folders: list[Path]) -> None:
        run(config, folders)
        read.extend(json.loads((folder / "shard.json").read_text())["rows"] for folder in folders)

    monkeypatch.setattr(ingest_shards, "_run_processes", run_and_count)
    monkeypatch.setattr(ingest_shards, "_MIN_PROCESS_BYTES", source.stat().st_size // 2)
    together = ingest_source(config, tmp_path / "together", shards=7)
    assert len(read) == 3 and sum(read) == 61 and min(read) > 10
    assert together.ref.md5 == alone.ref.md5
    assert together.quarantine.read_bytes() == alone.quarantine.read_bytes() != b""


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


def test_a_merge_reads_the_parts_of_shards_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path / "w"))
    source = write_source(tmp_path / "source", 2)
    config = {"data": SETTINGS | {"source": str(source)}}
    alone = ingest_source(DataConfig(**config["data"]), tmp_path / "alone")
    refs = [ingest_shards.run_shard(config, index, 3) for index in range(3)]
    texts = [json.dumps(ref.to_json()) for ref in refs]
    events = tmp_path / "w" / "runs"

    def gone() -> list[int]:
        lines = [line for path in events.rglob("events.jsonl") for line in path.read_text().splitlines()]
        notes = [json.loads(line).get("message", "") for line in lines]
        return sorted(int(note.split()[1]) for note in notes if "is no longer at" in note)

    def merged() -> list[int]:
        before = gone()
        assert ingest_shards.run_merge(config, texts).md5 == alone.ref.md5
        assert (tmp_path / "w" / "quarantine.jsonl").read_bytes() == alone.quarantine.read_bytes()
        assert not (tmp_path / "w" / "tmp").exists()
        now = gone()
        for index in before:
            now.remove(index)
        return now

    assert merged() == []
    shutil.rmtree(refs[1].uri)
    assert merged() == [1]
    (Path(refs[2].uri) / "shard.json").unlink()
    assert merged() == [1, 2]
    store = open_store(None, tmp_path / "w")
    for path in (tmp_path / "w" / "store" / "ingest-shards").iterdir():
        os.utime(path, (0, 0))
        for file in path.iterdir():
            os.utime(file, (0, 0))
    assert len(store.expire("ingest-shards", 14)) == 2
    assert merged() == [0, 1, 2]
    (source / "0.jsonl").write_bytes((source / "1.jsonl").read_bytes() + b"\n")
    assert ingest_shards.run_shard(config, 0, 3).sha256 != refs[0].sha256
    texts[0] = json.dumps(ingest_shards.run_shard(config, 0, 3).to_json())
    (source / "0.jsonl").write_bytes((source / "1.jsonl").read_bytes())
    with pytest.raises(DataRefused, match="changed while they were ingested: shard 0 saw"):
        ingest_shards.run_merge(config, texts)


def test_a_run_whose_shards_come_from_the_cache_makes_what_is_gone_again(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 1)
    config = {"step": "ingest", "seed": 7, "code_sha256": "c", "source_sha256": "s", "data": {"source": str(source)}}
    config["data"] |= for_kfp(SETTINGS)  # type: ignore[operator]
    script = tmp_path / "fan_out.py"
    script.write_text(RUN.replace("raise_on_error=True,", "raise_on_error=True, enable_caching=True,"))
    workdir = tmp_path / "w"

    def run(run_id: str) -> tuple[list[str], str]:
        environment = {"UNDERSTUDY_WORKDIR": str(workdir), "PYTHONPATH": str(ROOT), "UNDERSTUDY_RUN_ID": run_id}
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path), json.dumps(config)],
            cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        path = workdir / "runs" / run_id / "events.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        steps = [event["step"] for event in events if event["kind"] == "start"]
        return steps, json.loads((workdir / "dataset.json").read_text())["md5"]

    steps, md5 = run("first")
    assert sorted(steps) == ["ingest", "ingest_shard", "ingest_shard", "ingest_shard"]
    assert run("again") == ([], md5)
    shutil.rmtree(workdir / "store" / "ingest-shards")
    assert run("pieces-gone") == ([], md5)
    # Without the dataset the merge is no cache hit; its shards still are.
    Path(json.loads((workdir / "dataset.json").read_text())["uri"]).unlink()
    assert run("merge-anew") == (["ingest"], md5)


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
