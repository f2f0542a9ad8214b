"""The presets of pipelines/runs: each is a whole run laid over params.yaml, and changes what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.real.arms import ARMS
from experiments.real.cell import Settings
from experiments.real.tasks import TASKS, pretrained_overrides
from pipelines.arguments import arguments
from understudy.config import load_params

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "pipelines/runs").glob("*.yaml"))


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {name: leaf for key, each in value.items() for name, leaf in leaves(each, f"{path}.{key}").items()}


def changed(preset: Path) -> dict[str, Any]:
    plain, laid = (
        leaves(load_params(ROOT / "params.yaml", presets=presets).model_dump(mode="json")) for presets in ([], [preset])
    )
    return {name.removeprefix("."): value for name, value in laid.items() if name not in plain or plain[name] != value}


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [path.stem for path in RUNS] == ["cpu-many", "cpu", "one-gpu", "several-gpus"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_preset_is_valid_and_makes_the_pipelines_arguments(path: Path) -> None:
    params = load_params(ROOT / "params.yaml", presets=[path])
    given = arguments(params, digest_of=lambda source: None)
    stated = yaml.safe_load(path.read_text())["align"]
    given_align = leaves(given["align_config"]["align"])
    assert {name: given_align[name] for name in leaves(stated)} == leaves(stated)
    assert params.registry.name == f"understudy-{path.stem}"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_preset_states_nothing_that_params_yaml_says_already(path: Path) -> None:
    stated = set(leaves(yaml.safe_load(path.read_text())))
    found = {f".{name}" for name in changed(path)}
    # `scratch: null` takes away a whole section.
    assert {name for name in stated if name not in found and not name.startswith((".platform", ".model"))} == set()


def test_the_cpu_preset_differs_only_where_it_says() -> None:
    assert changed(ROOT / "pipelines/runs/cpu.yaml") == {
        "sft.epochs": 16.0,
        "sft.keep": "last",
        "align.divergence": "js",
        "align.num_rounds": 12,
        "evaluation.temperatures": [0.05, 0.3, 0.5, 0.7],
        "registry.name": "understudy-cpu",
    }


def test_the_preset_for_many_demonstrations_is_what_was_measured() -> None:
    preset = load_params(ROOT / "params.yaml", presets=[ROOT / "pipelines/runs/cpu-many.yaml"])
    overrides = (*TASKS["ansible_all"].overrides, *ARMS["reverse_kl_ngrams_wide"].overrides)
    measured = load_params(ROOT / "params.yaml", overrides)
    assert (preset.align, preset.evaluation) == (measured.align, measured.evaluation)
    assert changed(ROOT / "pipelines/runs/cpu-many.yaml").keys() >= {"data.source", "align.discriminator.init"}


def test_gpu_presets_say_that_they_are_unmeasured_and_train_what_fits_their_machines() -> None:
    one, several = (load_params(ROOT / "params.yaml", presets=[path]) for path in RUNS[2:])
    assert several.model.lora is None and several.align.discriminator == one.align.discriminator
    assert changed(RUNS[2]).keys() & {"align.learning_rate", "align.num_rounds", "sft.learning_rate"}
    assert (several.align.learning_rate, several.align.num_rounds) == (one.align.learning_rate, one.align.num_rounds)
    assert several.sft.learning_rate == one.sft.learning_rate
    assert several.platform.env == {"UNDERSTUDY_ACCELERATE": "fsdp"} and several.platform.steps.align.gpus == 8
    assert all("NOT MEASURED" in path.read_text() for path in RUNS[2:])
    # What `SHORT=1 experiments/real/gpu.sh` will measure, but for lengths and what is written on the way.
    settings = Settings(
        pretrained_overrides(Path("model"), lora=False), ("align.discriminator.warmup_rounds=6",), False
    )
    script = load_params(ROOT / "params.yaml", settings.of(ARMS["reverse_kl_ngrams_wide"]))
    free = {"rollout.max_response_tokens", "checkpoint_every_rounds", "checkpoint_every_steps", "held_out_every_rounds"}
    for section in ("sft", "align"):
        ours, theirs = (leaves(getattr(each, section).model_dump(mode="json")) for each in (one, script))
        assert {name: value for name, value in ours.items() if name[1:] not in free} == {
            name: value for name, value in theirs.items() if name[1:] not in free
        }
