from __future__ import annotations

import json
import multiprocessing.context
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from understudy.cli.data import DEFAULTS, app
from understudy.errors import ConfigError, DataRefused, IntegrityError
from understudy.platform.storage import open_store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("UNDERSTUDY_WORKDIR", "UNDERSTUDY_DVC_REMOTE", "UNDERSTUDY_STORAGE_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"prompt number {i * i}", "response": f"answer {i}" * 3} for i in range(80)]
    lines = [json.dumps(row) for row in rows] + ["broken"]
    (tmp_path / "my.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def as_json(*arguments: str) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_ingest_show_verify_pull(project: Path) -> None:
    done = as_json("ingest", "my.jsonl")
    assert (done["rows_in"], done["bad"], done["bad_by_reason"]) == (81, 1, {"not JSON": 1})
    assert sum(done["splits"].values()) == done["rows"] == 80 - done["duplicates_near"]
    assert done["duplicates_exact"] == 0
    refused = [json.loads(line) for line in Path(done["quarantine"]).read_text().splitlines()]
    assert [(row["line"], row["reason"], row["raw"]) for row in refused] == [(81, "not JSON", "broken")]
    shown = as_json("show")
    assert (shown["md5"], shown["rows"], shown["bad"]) == (done["md5"], done["rows"], 1)
    assert as_json("verify") == {"verified": True, "md5": done["md5"], "rows": done["rows"], "splits": done["splits"]}
    assert as_json("pull")["path"] == done["path"]


@pytest.mark.parametrize("shards", ["1", "2"])
def test_a_terminated_ingest_cleans_up_and_says_to_run_it_again(shards: str, project: Path) -> None:
    (project / "many").mkdir()
    for index in range(2):
        (project / "many" / f"{index}.jsonl").write_text('{"prompt": "p", "response": "r"}\n' * 400_000)
    command = [sys.executable, "-m", "understudy", "data", "ingest", "many", "--shards", shards]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(project.glob(".understudy/tmp/work-*/shard*/*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (75, "Interrupted. Run the same command again to resume.\n")
    assert list((project / ".understudy").rglob("*")) == []


def test_an_interrupt_before_the_last_shard_has_started_is_an_interrupt(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "many").mkdir()
    for index in range(2):
        (project / "many" / f"{index}.jsonl").write_text('{"prompt": "p", "response": "r"}\n')

    def interrupted(process: multiprocessing.context.SpawnProcess) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", interrupted)
    assert invoke("ingest", "many", "--shards", "2").exit_code == 130
    assert list((project / ".understudy").rglob("*")) == []


def test_show_does_not_mix_versions_after_a_failed_publication(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = as_json("ingest", "my.jsonl")
    (project / "other.jsonl").write_text("".join((project / "my.jsonl").read_text().splitlines(keepends=True)[:41]))
    (project / "file").touch()
    monkeypatch.setenv("UNDERSTUDY_DVC_REMOTE", str(project / "file"))
    assert invoke("ingest", "other.jsonl").exit_code != 0
    shown = as_json("show")
    told = (shown["md5"], shown["source"], shown["rows"], shown["rows_in"], shown["bad"], shown["warnings"])
    assert told == (done["md5"], "my.jsonl", done["rows"], 81, 1, [])


def test_show_says_when_the_summary_is_not_of_the_version(project: Path) -> None:
    done = as_json("ingest", "my.jsonl")
    path = project / ".understudy" / "ingest" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "md5": "1f.dir"}))
    again = f"Ingest the source of version {done['md5']} again to have its own."
    shown = as_json("show")
    assert shown["warnings"] == [f".understudy/ingest/summary.json is of version 1f.dir, not of this one. {again}"]
    assert "rows_in" not in shown and shown["rows"] == done["rows"]
    path.unlink()
    assert as_json("show")["warnings"] == [f"There is no .understudy/ingest/summary.json. {again}"]
    path.write_text("{")
    with pytest.raises(IntegrityError, match="summary.json is not the summary of an ingest: JSONDecodeError"):
        raise_from("show")


def test_shards_change_nothing_but_who_reads(project: Path) -> None:
    lines = (project / "my.jsonl").read_text().splitlines(keepends=True)
    (project / "many").mkdir()
    for index in range(3):
        (project / "many" / f"{index}.jsonl").write_text("".join(lines[index::3]))
    one = as_json("ingest", "many", "--workdir", "one")
    three = as_json("ingest", "many", "--workdir", "three", "--shards", "3")
    assert three["md5"] == one["md5"] == as_json("ingest", "my.jsonl")["md5"]
    assert (three["bad_by_reason"], three["source_files"]) == ({"not JSON": 1}, [f"many/{i}.jsonl" for i in range(3)])


def test_expire_deletes_old_pieces_and_says_which(project: Path) -> None:
    store = open_store(None, project / "w")
    (project / "piece").mkdir()
    (project / "piece" / "shard.json").write_text("{}")
    stored = store.put_folder(project / "piece", "ingest-shards")
    assert as_json("expire", "--workdir", "w") == {"deleted": True, "pieces": []}
    for path in (Path(stored.uri), *Path(stored.uri).iterdir()):
        os.utime(path, (0, 0))
    told = invoke("expire", "--workdir", "w", "--dry-run")
    assert told.exit_code == 0 and "Would be deleted" in told.stdout and Path(stored.uri).exists()
    (gone,) = as_json("expire", "--storage", str(project / "w" / "store"), "--days", "20")["pieces"]
    assert gone["uri"] == stored.uri and not Path(stored.uri).exists()
    assert invoke("expire", "--workdir", "w", "--days", "0").exit_code == 2


def test_text_output_names_what_matters(project: Path) -> None:
    result = invoke("ingest", "my.jsonl", "--workdir", "w")
    assert result.exit_code == 0
    assert "not JSON 1" in result.stdout and "rows in" in result.stdout and "train" in result.stdout


def test_defaults_are_those_of_the_shipped_params() -> None:
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())["data"]
    shipped.pop("source")
    assert shipped == DEFAULTS


def test_overrides_and_params(project: Path) -> None:
    with pytest.raises(DataRefused, match="above data.max_bad_fraction 1.0%"):
        raise_from("ingest", "my.jsonl", "--set", "data.max_bad_fraction=0.01")
    with pytest.raises(ConfigError, match="did you mean 'max_bad_fraction'"):
        raise_from("ingest", "my.jsonl", "--set", "data.max_bad_fractoin=0.01")
    with pytest.raises(ConfigError, match="only data.… can be set"):
        raise_from("ingest", "my.jsonl", "--set", "sft.epochs=1")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["max_response_chars"] = 5
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(DataRefused, match="All 81 rows of 'my.jsonl' are bad: too long"):
        raise_from("ingest", "my.jsonl")
    assert DEFAULTS["max_bad_fraction"] == 0.05


def raise_from(*arguments: str) -> None:
    result = invoke(*arguments)
    assert result.exception is not None
    raise result.exception


def test_missing_source(project: Path) -> None:
    with pytest.raises(ConfigError, match="'nowhere.jsonl' does not exist") as caught:
        raise_from("ingest", "nowhere.jsonl")
    assert caught.value.exit_code == 2
    assert not (project / ".understudy").exists()


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "dvc", "pyarrow", "mlflow", "kfp", "boto3")
    code = f"import sys, understudy.cli.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_says_where_params_are_looked_for() -> None:
    shown = " ".join(invoke("ingest", "--help").output.replace("│", " ").split())
    assert "Params file; else params.yaml here, if any." in shown
