"""Params files, presets laid over them and overrides: what wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny import PRESET, ROOT

from understudy.config import load_params
from understudy.errors import ConfigError

PARAMS = ROOT / "params.yaml"


def preset(folder: Path, text: str, name: str = "preset.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_preset_changes_what_it_names_and_nothing_else() -> None:
    plain, tiny = load_params(PARAMS), load_params(PARAMS, presets=[PRESET])
    assert (tiny.align.num_rounds, tiny.align.rollout.max_response_tokens) == (2, 24)
    assert tiny.align.rollout.temperature == plain.align.rollout.temperature
    assert tiny.align.learning_rate == plain.align.learning_rate
    assert [judge.name for judge in tiny.evaluation.judges] == ["tiny"]


def test_later_presets_win_and_overrides_win_over_all(tmp_path: Path) -> None:
    first = preset(tmp_path, "align: {num_rounds: 3, learning_rate: 0.5}", "first.yaml")
    second = preset(tmp_path, "align: {num_rounds: 4}", "second.yaml")
    both = load_params(PARAMS, presets=[first, second])
    assert (both.align.num_rounds, both.align.learning_rate) == (4, 0.5)
    assert load_params(PARAMS, ["align.num_rounds=5"], [first, second]).align.num_rounds == 5


def test_a_mapping_in_an_override_keeps_what_it_does_not_name_as_a_presets_does(tmp_path: Path) -> None:
    base, nested = load_params(PARAMS), "{splits: {test: 0.2}, max_prompt_chars: 50}"
    by_override = load_params(PARAMS, [f"data={nested}"])
    assert by_override.data.splits.model_dump() == {"validation": base.data.splits.validation, "test": 0.2}
    expected = base.data.model_copy(update={"splits": by_override.data.splits, "max_prompt_chars": 50})
    assert by_override.data == load_params(PARAMS, presets=[preset(tmp_path, f"data: {nested}")]).data == expected
    with pytest.raises(ConfigError, match="lora.alpha: missing"):
        load_params(PARAMS, ["model.lora={rank: 8}"])  # null before: there is nothing to keep
    whole = "model.lora={rank: 8, alpha: 32, dropout: 0.05, target_modules: all-linear}"
    lora = load_params(PARAMS, [whole, "model.lora={rank: 16}"]).model.lora
    assert lora and (lora.rank, lora.alpha) == (16, 32)
    assert load_params(PARAMS, [whole, "model.lora=null"]).model.lora is None


def test_all_problems_of_all_files_are_said_at_once_with_the_closest_names(tmp_path: Path) -> None:
    wrong = preset(tmp_path, "aling: {num_rounds: 3}\nsft: {epoch: 2}")
    with pytest.raises(ConfigError) as refused:
        load_params(PARAMS, ["align.num_rounds=-1"], [wrong])
    said = str(refused.value)
    assert "params.yaml + " in said and "preset.yaml: 3 problems" in said
    assert "align" in said and "epochs" in said and "align.num_rounds" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("folder", "Preset '.*' is a folder. pipelines/runs/ and"),
        ("- a\n- b", "holds list, not a mapping"),
        ("a: [", "is not valid YAML"),
        (None, "Preset .* does not exist"),
    ],
)
def test_a_preset_that_is_no_preset_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    path = preset(tmp_path, text) if text else tmp_path / "absent.yaml"
    path = tmp_path if text == "folder" else path
    with pytest.raises(ConfigError, match=said):
        load_params(PARAMS, presets=[path])


def test_a_precision_that_needs_a_loss_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.precision: Input should be 'fp32' or 'bf16' \(given: 'fp16'\)"):
        load_params(PARAMS, ["model.precision=fp16"])


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("null", "init is own but discriminator.own is null"),
        ("{hidden_size: 33, intermediate_size: 8, num_layers: 1, num_heads: 4}", "size 33 is not a multiple of twice"),
        ("{hidden_size: 36, intermediate_size: 8, num_layers: 1, num_heads: 4}", "size 36 is not a multiple of twice"),
    ],
)
def test_a_discriminator_that_cannot_be_built_is_refused_with_the_params(shape: str, said: str) -> None:
    overrides = ["align.discriminator.init=own", f"align.discriminator.own={shape}"]
    with pytest.raises(ConfigError, match=said):
        load_params(ROOT / "params.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["align.method=rlhf"], "align: discriminator.warmup_rounds is 0, but method rlhf trains its reward model in"),
        (["align.discriminator.updates_per_round=0"], "align: discriminator.warmup_rounds and .* are both 0"),
        (["align.method=iterative_sft", "align.discriminator.updates_per_round=0"], "set one of them above 0"),
    ],
)
def test_a_discriminator_that_nothing_trains_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_params(PARAMS, ["align.discriminator.warmup_rounds=0", *overrides])


def test_a_discriminator_that_starts_with_the_policy_is_accepted_and_so_is_one_that_self_play_does_not_follow() -> None:
    untaught = ["align.discriminator.warmup_rounds=0", "align.discriminator.updates_per_round=0"]
    assert load_params(PARAMS, untaught[:1]).align.discriminator.warmup_rounds == 0
    assert load_params(PARAMS, [*untaught, "align.method=selfplay"]).align.discriminator.updates_per_round == 0


@pytest.mark.parametrize("fields", ["{prompt: response}", "{response: prompt}", "{prompt: a, response: a}"])
def test_prompt_and_response_cannot_be_one_field(fields: str) -> None:
    with pytest.raises(ConfigError, match="both read from"):
        load_params(ROOT / "params.yaml", [f"data.fields={fields}"])
