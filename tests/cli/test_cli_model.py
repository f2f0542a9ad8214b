"""`understudy model` and `understudy ui` as a person uses them."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import sys

import pytest
import transformers
from support.capabilities import modes_hold
from support.small_policy import write_small_policy

from understudy import cli
from understudy.platform.promotion.examine import stored_artifacts
from understudy.platform.registry import Registry


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("work")
    policy = write_small_policy(workdir / "policy")
    tags = {"weights_sha256": "a", "report_sha256": "b", "stage": "aligned", "metrics": '{"T=1": {"nll": 2.5}}'}
    Registry(f"sqlite:///{workdir}/mlflow.db", workdir).register("tiny", "challenger", policy, tags, "understudy", None)
    return workdir


def call(arguments: list[str]) -> int:
    # The group of commands reads sys.argv to tell whether only help is wanted.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["understudy", *arguments])
        return cli.call(arguments)


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_list_and_show_as_json(workdir, capsys):
    assert call(["model", "list", "--workdir", str(workdir), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["version"], listed["aliases"]) == ("tiny", "1", ["challenger"])
    assert (listed["metrics"], listed["tags"]["stage"]) == ({"T=1": {"nll": 2.5}}, "aligned")
    assert call(["model", "show", "tiny@challenger", "--workdir", str(workdir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == listed


def test_generate_is_the_same_streamed_and_whole(workdir, capsys):
    command = ["model", "generate", "tiny@challenger", "--prompt", "install nginx", "--seed", "3"]
    command += ["--max-new-tokens", "12", "--workdir", str(workdir)]
    assert call([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["tokens"] <= 12
    assert call(command) == 0
    assert capsys.readouterr().out == answer["response"] + "\n"


def test_mistakes_are_said(workdir, tmp_path, capsys):
    assert call(["model", "show", "tony", "--workdir", str(workdir)]) == 2
    assert "Did you mean tiny?" in capsys.readouterr().err
    assert call(["model", "list", "--workdir", str(tmp_path / "nothing")]) == 2
    assert "There is no registry at sqlite:///" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert call(["ui", "--port", str(port), "--workdir", str(workdir)]) == 2
    assert f"Port {port} on 127.0.0.1 cannot be used (Address already in use)" in capsys.readouterr().err


def test_a_rollback_takes_the_name_alone(workdir, capsys):
    for given in ("tiny@challenger", "tiny/1"):
        assert call(["model", "rollback", given, "--workdir", str(workdir)]) == 2
        said = capsys.readouterr().err
        assert f"takes the name alone, not '{given}'" in said and "`understudy model rollback tiny`" in said


def test_a_prompt_that_is_too_long_is_told_by_us_alone(workdir, capsys, monkeypatch):
    transformers.utils.logging.set_verbosity_warning()
    others: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger("transformers").handlers[0], "emit", others.append)
    assert call(["model", "generate", "tiny", "--prompt", "word " * 1000, "--workdir", str(workdir)]) == 2
    assert "tokens but the model's context holds 64" in capsys.readouterr().err
    assert others == []


@pytest.mark.parametrize("command", ["show", "generate", "compare"])
def test_help_says_what_a_bare_name_is(command, capsys):
    assert call(["model", command, "--help"]) == 0
    assert "NAME for its highest version" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_working_directory_that_may_only_be_read_is_read(workdir, tmp_path, capsys):
    closed = tmp_path / "closed"
    shutil.copytree(workdir, closed)
    (closed / "mlflow.db.lock").unlink()
    (closed / "mlflow.db").chmod(0o444)
    closed.chmod(0o555)
    here = ["--workdir", str(closed)]
    with modes_hold():
        with pytest.raises(PermissionError):
            (closed / "file").touch()
        for arguments, words in {
            ("list",): "tiny   1        challenger",
            ("show", "tiny"): "tiny/1  @challenger",
            ("generate", "tiny", "--prompt", "a", "--max-new-tokens", "1"): "",
            ("ladder",): "tiny/1     1500",
        }.items():
            assert call(["model", *arguments, *here]) == 0
            assert words in capsys.readouterr().out
        registry = Registry(f"sqlite:///{closed}/mlflow.db", closed)
        with stored_artifacts(registry, registry.find("tiny"), None) as stored:
            assert stored.scratch.is_dir() and closed not in stored.scratch.parents
