"""Working directory, MLflow and store are found in one order by every command: option, params, environment, local."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import typer
import yaml

from understudy.cli import COMMANDS, call
from understudy.cli.doctor import _python
from understudy.errors import ConfigError
from understudy.platform import where
from understudy.platform.promotion import examine, places

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["understudy", "model"])  # by it the group decides what to import
    for name in ("MLFLOW_TRACKING_URI", "UNDERSTUDY_STORAGE_URI", "UNDERSTUDY_WORKDIR", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "")  # set, so that whatever a command changes is undone


def write_params(**sections: dict[str, Any]) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    Path("params.yaml").write_text(yaml.safe_dump(values))


def leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


def test_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = f"sqlite:///{tmp_path / 'w' / 'mlflow.db'}"
    assert (where.tracking_uri(Path("w")), where.named_tracking_uri(), where.storage_uri()) == (local, None, None)
    assert where.workdir() == tmp_path / ".understudy"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:1")
    monkeypatch.setenv("UNDERSTUDY_STORAGE_URI", " s3://environment/store ")
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", "elsewhere")
    assert (where.tracking_uri(Path("w")), where.storage_uri()) == ("http://environment:1", "s3://environment/store")
    assert where.workdir() == tmp_path / "elsewhere"
    assert where.params_here() is None
    write_params()
    assert where.tracking_uri(Path("w"), where.params_here()) == "http://environment:1"  # params that name none
    write_params(tracking={"uri": "http://params:1"}, storage={"uri": "s3://params/store"})
    params = where.params_here()
    assert (where.tracking_uri(Path("w"), params), where.storage_uri(params)) == (
        "http://params:1",
        "s3://params/store",
    )
    assert where.storage_uri(params, "s3://option/store") == "s3://option/store"


def test_a_relative_sqlite_store_starts_where_the_command_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///environment.db")
    assert where.named_tracking_uri() == f"sqlite:///{tmp_path}/environment.db"
    write_params(tracking={"uri": "sqlite:///params.db"})
    assert where.tracking_uri(Path("w"), where.params_here()) == f"sqlite:///{tmp_path}/params.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////absolute.db")
    assert where.named_tracking_uri() == "sqlite:////absolute.db"


def test_every_command_takes_its_working_directory_from_the_environment() -> None:
    found = {}
    for name, (module, _) in COMMANDS.items():
        for path, command in leaves(typer.main.get_command(importlib.import_module(module).app), (name,)):
            for option in command.params:
                if "--workdir" in option.opts:
                    found[" ".join(path)] = (option.envvar, str(option.default))
    assert len(found) >= 18 and {"run", "doctor", "ui", "data ingest", "model watch"} <= set(found)
    assert set(found.values()) == {("UNDERSTUDY_WORKDIR", ".understudy")}


def test_doctor_looks_at_the_working_directory_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path / "elsewhere"))
    call(["doctor", "--json"])
    findings = {finding["name"]: finding["value"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["workdir"] == str(tmp_path / "elsewhere")


@pytest.mark.parametrize(("version", "fits"), [((3, 9, 18), False), ((3, 11, 0), True), ((3, 12, 1), True)])
def test_doctor_compares_versions_of_python_as_numbers(
    version: tuple[int, int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("sys.version_info", version)
        patched.setattr("platform.python_version_tuple", lambda: tuple(map(str, version)))
        found = _python()
    assert (found.ok, found.say) == (fits, "" if fits else "install Python 3.11 or newer")


def test_models_are_where_the_params_say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:2")
    write_params(tracking={"uri": "http://127.0.0.1:1"}, storage={"endpoint_url": "http://127.0.0.1:3"})
    assert call(["model", "list"]) == 5
    assert "MLflow at http://127.0.0.1:1 does not answer" in capsys.readouterr().err
    assert os.environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:3"
    assert call(["ui"]) == 2
    assert "MLflow is a server, http://127.0.0.1:1, which" in capsys.readouterr().err


def test_a_promotion_by_hand_meets_the_pipelines_in_the_bucket_of_the_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places.place_of(tmp_path, "tiny", "s3://bucket/store/").uri == "s3://bucket/store/promotion/tiny"
    assert places.place_of(tmp_path, "tiny", str(tmp_path / "store")).uri == str(tmp_path / "promotion" / "tiny")
    asked: list[tuple[str, str | None]] = []

    def place_of(workdir: Path, model: str, storage_uri: str | None) -> NoReturn:
        asked.append((model, storage_uri))
        raise ConfigError("seen")

    registry = SimpleNamespace(find=lambda name: SimpleNamespace(name="tiny", version="1"))
    monkeypatch.setattr("understudy.cli.model.open_registry", lambda workdir: registry)
    monkeypatch.setattr(examine, "Examination", lambda *given: SimpleNamespace(candidate=lambda *_, **__: None))
    monkeypatch.setattr("understudy.platform.promotion.aliases.MlflowAliases", lambda registry: None)
    monkeypatch.setattr(places, "place_of", place_of)
    write_params(storage={"uri": "s3://bucket/store"})
    for command in (["model", "promote", "tiny"], ["model", "rollback", "tiny"]):
        assert call(command) == 2
    assert asked == [("tiny", "s3://bucket/store")] * 2
