"""What people get wrong ends with the exit code that the README states and with a remedy, never with "Unexpected"."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from support.capabilities import modes_hold
from support.refused_writes import files_of_at_most

from understudy import cli
from understudy.cli.data import DEFAULTS
from understudy.config import DataConfig
from understudy.platform import datasets
from understudy.platform.registry import Registry
from understudy.platform.steps.ingest import ingest_source

ROOT = Path(__file__).parents[2]
INGEST_AGAIN = "data ingest my.jsonl --set data.near_duplicate_threshold=null"


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source of 60 rows and a working directory in which it was ingested."""
    folder = tmp_path_factory.mktemp("ingested")
    rows = [json.dumps({"prompt": f"p{index}", "response": f"r{index}"}) + "\n" for index in range(60)]
    (folder / "my.jsonl").write_text("".join(rows))
    remote = str(folder / "w" / "dvc-remote")
    config = DataConfig(source=str(folder / "my.jsonl"), **{**DEFAULTS, "near_duplicate_threshold": None})
    ingest_source(config, folder / "w", remote=remote)
    return folder


@pytest.fixture
def project(ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of that, beside a file, a folder that may not be written, and odd YAML and JSON."""
    for name in ("UNDERSTUDY_WORKDIR", "UNDERSTUDY_DVC_REMOTE", "UNDERSTUDY_STORAGE_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(ingested, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    Path("file").touch()
    Path("closed").mkdir(mode=0o555)
    Path("deep.yaml").write_text("[" * 5000)
    Path("list.json").write_text("[]")
    Path("odd.json").write_text('{"protocol": []}')
    shutil.copy(ROOT / "gate.yaml", "gate.yaml")
    Path("damaged").mkdir()
    Path("damaged/mlflow.db").write_bytes(b"x" * 5000)
    return tmp_path / "here"


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Return exit code and stderr of one command line."""
    monkeypatch.setattr(sys, "argv", ["understudy", *arguments])
    with modes_hold():
        code = cli.call(list(arguments))
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("data ingest my.jsonl --workdir file", 2, r"'.*/file' cannot be created: File exists. Name another"),
        ("data ingest my.jsonl --workdir file/w", 2, "file/w' cannot be created: Not a directory"),
        ("data ingest my.jsonl --workdir closed", 2, "closed' is not writable for user"),
        ("data ingest my.jsonl --workdir closed/w", 2, "closed/w' cannot be created: Permission denied"),
        ("data ingest my.jsonl --set data=1", 2, "valid dictionary or instance of DataConfig .given: 1"),
        ("data ingest my.jsonl --set data.splits=" + "[" * 5000, 2, "is not valid YAML: it is nested too deeply"),
        ("data ingest my.jsonl --params deep.yaml", 2, "deep.yaml is not valid YAML: it is nested too deeply"),
        (f"data ingest {'x' * 300}", 2, "x cannot be read: File name too long. Check the path and its rights"),
        ("data commit --workdir w --folder nofolder", 2, "There is no folder 'nofolder' for the pointer. Make it, or"),
        ("model gate list.json", 2, "list.json is JSON, but not a report. Name the report.json that evaluate wrote"),
        ("model gate odd.json", 2, "odd.json is JSON, but not a report"),
        ("model list --workdir damaged", 1, "MLflow's database sqlite:.*/mlflow.db cannot be used: .* is not a"),
        ("objectives show --out closed/a.png", 2, "closed/a.png cannot be written: Permission denied. .* with --out"),
        ("objectives show --out file/a.png", 2, "file/a.png cannot be written: (Not a directory|File exists)"),
        (f"pipeline compile --params {ROOT}/params.yaml --out closed", 2, "closed/.* cannot be written: Permission"),
        (f"pipeline compile --params {ROOT}/params.yaml --out file", 2, "file/.* cannot be written: (Not|File exists)"),
    ],
)  # fmt: skip
def test_a_wrong_command_line(
    command: str, code: int, words: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    found, said = told(monkeypatch, capsys, *command.split())
    assert found == code, said
    assert_said(words, said)
    assert "SELECT" not in said


def assert_said(words: str, said: str) -> None:
    assert re.search(words, said), said
    assert "Unexpected" not in said and "Traceback" not in said


VERSION = "w/datasets/VERSION"


@pytest.mark.parametrize(
    ("damaged", "command", "words"),
    [
        (f"{VERSION}/.dir", "data verify", r"/\.dir cannot be read: No such file.* Delete .* and run `understudy"),
        (f"{VERSION}/.dir", "data pull", r"/\.dir cannot be read: No such file or directory"),
        (f"{VERSION}/.dir", INGEST_AGAIN, r"/\.dir cannot be read: No"),
        (f"{VERSION}/train.parquet", "data verify", r"train.parquet cannot be read: No such file or directory"),
        ("w/demonstrations.dvc", "data commit", "demonstrations.dvc cannot be read: No such file.* Run ingest again"),
    ],
)  # fmt: skip
def test_a_file_of_the_version_is_gone(
    damaged: str, command: str, words: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", "w")
    subprocess.run(["git", "init", "-q"], check=True)
    Path(damaged.replace("VERSION", version_of(project))).unlink()
    code, said = told(monkeypatch, capsys, *command.split())
    assert code == 1, said
    assert_said(words, said)


def test_a_version_is_verified_where_nothing_may_be_written_and_pulled_where_it_may(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Path("w").chmod(0o555)
    assert told(monkeypatch, capsys, "data", "verify", "--workdir", "w") == (0, "")
    Path("w").chmod(0o755)
    shutil.rmtree(f"w/datasets/{version_of(project)}")
    Path("w").chmod(0o555)
    code, said = told(monkeypatch, capsys, "data", "pull", "--workdir", "w")
    Path("w").chmod(0o755)
    assert code == 2, said
    assert_said("w' is not writable for user", said)


@pytest.mark.parametrize("content", ["{", "[]", "1", '{"md5": "1f.dir"}', '"\\ud800"', "null"])
@pytest.mark.parametrize(
    ("damaged", "command"),
    [
        ("w/dataset.json", "data show"),
        ("w/datasets/VERSION.json", INGEST_AGAIN),
        ("w/ingest/summary.json", "data show"),
    ],
)
def test_a_record_is_damaged(
    damaged: str, command: str, content: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", "w")
    Path(damaged.replace("VERSION", version_of(project))).write_text(content)
    code, said = told(monkeypatch, capsys, *command.split())
    if damaged.endswith("summary.json") and "1f.dir" in content:
        assert code == 0  # a summary of another version, which is said
        return
    assert code == 1, said
    assert_said(
        "(is not a dataset record|is not the summary of an ingest): .*(Delete it and run ingest|Ingest the source)",
        said,
    )


def version_of(project: Path) -> str:
    return datasets.read_record(project / "w").md5.removesuffix(".dir")


@pytest.mark.parametrize("uri", ["http://[::1", "http://host:port"])
def test_a_tracking_uri_that_is_no_url(
    uri: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, said = told(monkeypatch, capsys, "model", "list")
    assert code == 2, said
    assert_said(r"The tracking URI 'http://\S+' is not a URL: .* Correct tracking.uri .MLFLOW_TRACKING_URI.", said)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "a"},
            "Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY. Correct the AWS_",
        ),
        (
            {"AWS_PROFILE": "nobody"},
            r"The config profile \(nobody\) could not be found. Correct the AWS_… variables or",
        ),
        ({"AWS_CONFIG_FILE": "file.ini"}, "Unable to parse config file: .*file.ini. Correct the AWS_"),
        ({"AWS_REGION": "eu west"}, "region_name 'eu west' doesn't match a supported format. Correct the AWS_"),
        ({"AWS_ENDPOINT_URL": "nowhere"}, "AWS_ENDPOINT_URL 'nowhere' is not a URL. Use http"),
    ],
)
def test_a_wrong_aws_environment(
    variables: dict[str, str], words: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    Path("file.ini").write_text("no section")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, said = told(monkeypatch, capsys, "data", "ingest", "s3://bucket/prefix")
    assert code == 2, said
    assert_said(words, said)
    assert "AWS_ENDPOINT_URL ''" not in said


@pytest.mark.parametrize(("remote", "code"), [("s3://bucket/dvc", 5), ("closed", 2)])
def test_a_remote_whose_objects_are_forbidden(
    remote: str, code: int, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from dvc.repo import Repo

    def forbidden(repo: Repo) -> int:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(datasets, "reachable", lambda location: nullcontext(MagicMock()))
    if remote.startswith("s3://"):
        monkeypatch.setattr(Repo, "push", forbidden)
    monkeypatch.setenv("UNDERSTUDY_DVC_REMOTE", remote)
    found, said = told(monkeypatch, capsys, "data", "ingest", "my.jsonl", "--workdir", "new")
    assert found == code, said
    assert_said(f"DVC could not push to .*{remote}: .* Check the remote and your rights on it, then run", said)


def test_a_disk_that_ingest_fills(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(datasets, "_workspace", limited(datasets._workspace))
    with files_of_at_most(1_000_000):
        code, said = told(monkeypatch, capsys, *INGEST_AGAIN.split(), "--workdir", "new")
    assert code == 1, said
    assert_said(r"^The disk that holds '\S*/new' is full .*File too large.*left there. Free some space or", said)


def limited(function: Any) -> Any:
    """Let no file grow from here on: earlier ones are of the ingest itself, which has a test of its own."""

    def done(*arguments: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return function(*arguments)

    return done


def test_a_disk_that_a_database_fills(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(*arguments: object) -> None:
        store = sqlite3.connect(":memory:")
        store.execute("PRAGMA max_page_count = 1")
        store.execute("CREATE TABLE t (x)")

    monkeypatch.setattr(Registry, "__init__", full)
    code, said = told(monkeypatch, capsys, "model", "list", "--workdir", "damaged")
    assert code == 1, said
    assert_said("The disk is full .database or disk is full.. Free some space, or name a working directory on", said)
