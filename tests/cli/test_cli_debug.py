"""`--debug` adds the traceback and nothing else: exit code and last words stay."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from understudy.cli import call
from understudy.cli import data as data_command
from understudy.errors import ConfigError, DataRefused, DriftFound, GateRefused, Preempted, ServiceUnreachable

ERRORS = [ConfigError, DataRefused, GateRefused, ServiceUnreachable, DriftFound, Preempted, ValueError]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["understudy", "data"])  # by it the group decides what to import


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_keeps_its_exit_code_and_its_paragraph(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> NoReturn:
        raise kind("what, both values, remedy")

    monkeypatch.setattr(data_command, "_data_config", fails)
    command = ["data", "ingest", "rows.jsonl"]
    plain = call(command)
    said = capsys.readouterr().err
    assert plain == getattr(kind, "exit_code", 1) and "Traceback" not in said
    for arguments in (["--debug", *command], [*command, "--debug"]):
        assert call(arguments) == plain
        traced = capsys.readouterr().err
        assert traced.startswith("Traceback (most recent call last):") and ", in fails\n" in traced
        assert traced.endswith(said.replace(" Run the command with --debug to see where.", ""))


def test_an_empty_file_is_refused_with_3_also_under_debug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    assert call(["data", "ingest", "empty.jsonl", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err
