from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from understudy.config import DataConfig
from understudy.data.demonstrations import SPLITS, load_split
from understudy.errors import ConfigError, DataRefused, IntegrityError, ServiceUnreachable
from understudy.platform import datasets
from understudy.platform.steps import ingest as step

SECTION: dict[str, Any] = {
    "max_prompt_chars": 100,
    "max_response_chars": 100,
    "max_bad_fraction": 0.05,
    "near_duplicate_threshold": None,
    "splits": {"validation": 0.1, "test": 0.2},
    "unicode_form": "keep",
    "fields": None,
}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("UNDERSTUDY_", "MLFLOW_", "AWS_", "DVC_")):
            monkeypatch.delenv(name)


def write_source(path: Path, count: int = 60) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "response": f"r{i}"}) + "\n" for i in range(count)))
    return path


def ingested(source: Path, workdir: Path) -> step.IngestResult:
    return step.ingest_source(DataConfig(source=str(source), **SECTION), workdir)


def test_version_is_content_addressed_and_uploaded_once(tmp_path: Path) -> None:
    source = write_source(tmp_path / "a.jsonl")
    first = ingested(source, tmp_path / "w")
    lines = source.read_text().splitlines(keepends=True)
    other = tmp_path / "reversed.jsonl"
    other.write_text("".join(reversed(lines)) + lines[0])
    second = ingested(other, tmp_path / "w")
    assert first.num_uploaded == 5  # three splits, dataset.json, the listing
    assert second.num_uploaded == 0
    assert first.ref.md5 == second.ref.md5 and first.ref.uri == second.ref.uri
    assert first.ref.uri == f"{tmp_path}/w/dvc-remote/files/md5/{first.ref.md5[:2]}/{first.ref.md5[2:]}"
    assert Path(first.ref.uri).is_file()
    assert (first.ref.num_files, first.ref.rows, sum(first.ref.splits.values())) == (4, 60, 60)
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == [
        "dataset.json", "datasets", "demonstrations.dvc", "dvc-remote", "ingest", "quarantine.jsonl",
    ]  # fmt: skip


def test_parent_is_the_version_before_and_stays_when_a_version_comes_again(tmp_path: Path) -> None:
    small, large = write_source(tmp_path / "s.jsonl", 60), write_source(tmp_path / "l.jsonl", 80)
    first = ingested(small, tmp_path / "w").ref
    second = ingested(large, tmp_path / "w").ref
    again = ingested(small, tmp_path / "w").ref
    assert (first.parent, second.parent, again) == (None, first.md5, first)


def test_materialise_brings_the_same_bytes_elsewhere(tmp_path: Path) -> None:
    result = ingested(write_source(tmp_path / "a.jsonl"), tmp_path / "w")
    folder = datasets.materialise(result.ref, tmp_path / "elsewhere")
    assert folder == tmp_path / "elsewhere" / "datasets" / result.ref.md5.removesuffix(".dir")
    for split in SPLITS:
        assert load_split(folder, split) == load_split(result.folder, split)
    assert datasets.verify(result.ref, tmp_path / "elsewhere") == result.ref.splits


@pytest.mark.parametrize(
    "name",
    ["w #k", "a,b", "%(x)s", "$x", "'q' \"Q\"", "[remote]", "x = y", "naïve\n2", " edge ", "a::b", "~", "?*"],
)
def test_a_version_stays_below_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    workdir = tmp_path / "inner" / name
    result = ingested(write_source(tmp_path / "a.jsonl"), workdir)
    assert result.ref.uri == f"{workdir}/dvc-remote/files/md5/{result.ref.md5[:2]}/{result.ref.md5[2:]}"
    assert Path(result.ref.uri).is_file() and datasets.verify(result.ref, workdir) == result.ref.splits
    assert [path.name for path in (tmp_path / "inner").iterdir()] == [name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "inner"]


def test_a_name_that_dvc_fails_on_is_refused_before_the_source_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"DVC cannot work in '.*/\{w\}', whose name has a brace.*--workdir DIR"):
        ingested(tmp_path / "nowhere.jsonl", tmp_path / "{w}")
    with pytest.raises(ConfigError, match=r"'s3://bucket/\}', whose name has a brace.* UNDERSTUDY_DVC_REMOTE"):
        datasets.publish(tmp_path, tmp_path / "w", "s3://bucket/}")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found_in_the_remote_and_in_the_folder(tmp_path: Path) -> None:
    result = ingested(write_source(tmp_path / "a.jsonl"), tmp_path / "w")
    train = result.folder / "train.parquet"
    data = train.read_bytes()
    train.write_bytes(data[:-1] + b"!")
    with pytest.raises(IntegrityError, match=r"train.parquet has MD5 [0-9a-f]{32}, its version lists [0-9a-f]{32}"):
        datasets.verify(result.ref, tmp_path / "w")
    listing = json.loads(Path(result.ref.uri).read_bytes())
    md5 = next(item["md5"] for item in listing if item["relpath"] == "train.parquet")
    stored = tmp_path / "w" / "dvc-remote" / "files" / "md5" / md5[:2] / md5[2:]
    stored.chmod(0o644)
    stored.write_bytes(data + b"!")
    with pytest.raises(IntegrityError, match="train.parquet has MD5"):
        datasets.materialise(result.ref, tmp_path / "x")
    stored.unlink()
    with pytest.raises(IntegrityError, match=f"{stored} is missing from the dataset's remote"):
        datasets.materialise(result.ref, tmp_path / "x")
    assert not (tmp_path / "x" / "datasets").exists()


def test_dvc_itself_reads_the_remote_through_the_pointer(tmp_path: Path) -> None:
    result = ingested(write_source(tmp_path / "a.jsonl"), tmp_path / "w")
    project = tmp_path / "project"
    project.mkdir()
    settings = datasets._workspace(project, datasets.default_remote(tmp_path / "w"))
    (project / "demonstrations.dvc").write_bytes((tmp_path / "w" / "demonstrations.dvc").read_bytes())
    from dvc.repo import Repo

    with Repo(str(project), config=settings) as repo:
        repo.pull()
    assert load_split(project / "demonstrations", "train") == load_split(result.folder, "train")


def test_commit_takes_the_pointer_and_nothing_else(tmp_path: Path) -> None:
    result = ingested(write_source(tmp_path / "a.jsonl"), tmp_path / "w")
    project = tmp_path / "project"
    project.mkdir()
    with pytest.raises(ConfigError, match="Run inside a Git repository"):
        datasets.commit(result.ref, tmp_path / "w", project)
    for command in (["init", "-q"], ["config", "user.name", "T"], ["config", "user.email", "t@example.org"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    (project / "other.txt").write_text("staged by someone else")
    subprocess.run(["git", "add", "other.txt"], cwd=project, check=True)
    pointer, revision = datasets.commit(result.ref, tmp_path / "w", project)
    assert result.ref.md5 in pointer.read_text()
    shown = subprocess.run(
        ["git", "show", "--name-only", "--format=%s", revision], cwd=project, capture_output=True, text=True
    )
    assert shown.stdout.split("\n\n")[1].split() == ["demonstrations.dvc"]
    assert "60 demonstrations" in shown.stdout
    assert datasets.commit(result.ref, tmp_path / "w", project)[1] == revision


def test_step_logs_and_hands_over_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path / "w"))
    monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(tmp_path / "run"))
    source = write_source(tmp_path / "a.jsonl")
    data = {**SECTION, "source": str(source), "max_prompt_chars": 100.0}  # KFP hands floats over
    digest = step.source_sha256(str(source))
    ref = step.run({"code_sha256": "c", "source_sha256": digest, "data": data})
    assert (ref.rows, ref.source_sha256) == (60, digest)
    assert '"rows_in": 60' in (tmp_path / "run" / "events.jsonl").read_text().replace("60.0", "60")


def test_step_refuses_an_empty_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path / "w"))
    monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(tmp_path / "run"))
    source = write_source(tmp_path / "a.jsonl", 1)
    with pytest.raises(DataRefused, match="split is empty: 1 rows"):
        step.run({"data": {**SECTION, "source": str(source)}})
    assert not (tmp_path / "w" / "dvc-remote").exists()


def test_step_tells_of_a_small_split_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path / "w"))
    monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(tmp_path / "run"))
    source = write_source(tmp_path / "a.jsonl")
    ref = step.run({"data": {**SECTION, "source": str(source), "splits": {"validation": 0.2, "test": 0.1}}})
    assert ref.splits["test"] == 3
    assert "The test split has 3 groups (3 of 60 rows): below 6" in capsys.readouterr().out


def test_source_digest_follows_content_and_names_not_the_place(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_source(tmp_path / folder / "x.jsonl")
    first, second = (step.source_sha256(str(tmp_path / folder)) for folder in ("a", "b"))
    assert first == second
    write_source(tmp_path / "b" / "x.jsonl", 61)
    assert step.source_sha256(str(tmp_path / "b")) != first


def test_unreachable_storage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    with pytest.raises(ServiceUnreachable, match="s3://bucket/data at http://127.0.0.1:9") as caught:
        step.list_any("s3://bucket/data")
    assert caught.value.exit_code == 5
    monkeypatch.setenv("UNDERSTUDY_DVC_REMOTE", "s3://bucket/dvc")
    with pytest.raises(ServiceUnreachable, match="s3://bucket/dvc at http://127.0.0.1:9"):
        ingested(write_source(tmp_path / "a.jsonl"), tmp_path / "w")
    assert not (tmp_path / "w" / "dataset.json").exists()


def test_other_schemes_are_refused() -> None:
    with pytest.raises(ConfigError, match="'https://example.org/x.jsonl' has a scheme that is not supported"):
        step.list_any("https://example.org/x.jsonl")


def test_no_version_yet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Run `understudy data ingest SOURCE`"):
        datasets.read_record(tmp_path)
