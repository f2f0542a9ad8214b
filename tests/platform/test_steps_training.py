"""The training steps on real tiny demonstrations, through real records, store and DVC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny import ROOT, tiny_params

import understudy.training.adversarial as adversarial
import understudy.training.examples as training_examples
import understudy.training.sft as training_sft
from understudy.config import Params
from understudy.data.demonstrations import load_split
from understudy.data.withholding import is_withheld
from understudy.models.loading import load_policy
from understudy.platform.datasets import materialise
from understudy.platform.steps import align, ingest, sft
from understudy.records import DatasetRef, PolicyRef


def _sections(params: Params, *names: str, **extra: Any) -> dict[str, Any]:
    dumped = params.model_dump(mode="json")
    return {"seed": params.seed, "code_sha256": "c0de", **{name: dumped[name] for name in names}, **extra}


def _workdir(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(folder))
    monkeypatch.setenv("UNDERSTUDY_DEVICE", "cpu")
    monkeypatch.setenv("UNDERSTUDY_THREADS", "1")
    for name in ("UNDERSTUDY_RUN_DIR", "MLFLOW_TRACKING_URI", "UNDERSTUDY_STORAGE_URI", "UNDERSTUDY_DVC_REMOTE"):
        monkeypatch.delenv(name, raising=False)


def _chain(params: Params) -> tuple[DatasetRef, PolicyRef, PolicyRef, PolicyRef]:
    dataset = ingest.run(_sections(params, "data", source_sha256=""))
    config = _sections(params, "model", "sft")
    warm = sft.run(config, dataset)
    aligned, discriminator = align.run(_sections(params, "model", "align"), dataset, warm)
    assert discriminator.policy_sha256 == aligned.sha256
    longer = sft.run(config | {"step": "sft_longer"}, dataset, start=warm, compute_of=aligned)
    return dataset, warm, aligned, longer


def test_chain_records_lineage_and_is_bit_identical_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = tiny_params()
    _workdir(monkeypatch, tmp_path / "a")
    dataset, warm, aligned, longer = _chain(params)
    assert (warm.stage, aligned.stage, longer.stage) == ("sft", "aligned", "sft_longer")
    assert aligned.parent_sha256 == longer.parent_sha256 == warm.sha256 and warm.parent_sha256 is None
    assert {warm.dataset_md5, aligned.dataset_md5} == {dataset.md5}
    # One step may overshoot the given compute, no more.
    assert aligned.compute_token_passes <= longer.compute_token_passes < 1.5 * aligned.compute_token_passes
    files = sorted(path.name for path in Path(aligned.uri).iterdir())
    assert "model.safetensors" in files and "history.jsonl" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    assert not list((tmp_path / "a/checkpoints").rglob("*.safetensors"))
    history = [json.loads(line) for line in (Path(aligned.uri) / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [1, 2, 3]
    assert not any("seconds" in name or "per_second" in name for row in history for name in row)

    _workdir(monkeypatch, tmp_path / "b")
    again = _chain(params)
    assert [record.sha256 for record in again[1:]] == [warm.sha256, aligned.sha256, longer.sha256]
    assert again[0].md5 == dataset.md5


def test_a_discriminator_is_described_by_what_its_method_trained_it_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tiny_params("align.num_rounds=1", "align.method=rlhf", "align.level=token", "align.divergence=js")
    assert params.align.discriminator.loss == "logistic"
    _workdir(monkeypatch, tmp_path)
    dataset = ingest.run(_sections(params, "data", source_sha256=""))
    warm = sft.run(_sections(params, "model", "sft"), dataset)
    _, discriminator = align.run(_sections(params, "model", "align"), dataset, warm)
    described = json.loads((Path(discriminator.uri) / "description.json").read_text(encoding="utf-8"))
    told = {name: described[name] for name in ("method", "divergence", "level", "loss")}
    # `model watch` takes the mean over the tokens of a discriminator whose level is token.
    assert told == {"method": "rlhf", "divergence": "reverse_kl", "level": "sequence", "loss": "bradley_terry"}


def test_withheld_demonstrations_reach_alignment_and_longer_sft_but_not_the_warm_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    trained, aligned = training_sft.train_sft, adversarial.align

    def noted(run: Any, position: int) -> Any:
        def inner(*given: Any) -> Any:
            seen.append({example.id for example in given[position]})
            return run(*given)

        return inner

    monkeypatch.setattr(training_sft, "train_sft", noted(trained, 1))
    monkeypatch.setattr(adversarial, "align", noted(aligned, 1))
    _workdir(monkeypatch, tmp_path)
    params = tiny_params("sft.withheld_fraction=0.3", "align.demonstrations=withheld")
    dataset = ingest.run(_sections(params, "data", source_sha256=""))
    config = _sections(params, "model", "sft")
    warm = sft.run(config, dataset)
    game = _sections(params, "model", "align", withheld_fraction=0.3)
    policy, _ = align.run(game, dataset, warm)
    sft.run(config | {"step": "sft_longer"}, dataset, start=warm, compute_of=policy)
    shown, withheld, longer = seen
    rows = load_split(materialise(dataset, tmp_path), "train")
    assert withheld == {row.id for row in rows if is_withheld(row.group, 0.3)}
    assert shown == {row.id for row in rows} - withheld and longer == shown | withheld
    assert len(withheld) > 20 and len(shown) > 20

    # Another fraction is another policy, and another alignment where it takes the withheld ones.
    for field, value in (("withheld_fraction", 0.2), ("align", {**game["align"], "demonstrations": "all"})):
        other, _ = align.run(game | {field: value}, dataset, warm)
        assert other.config_sha256 != policy.config_sha256
    assert seen[3] < withheld and seen[4] == longer


def test_withheld_demonstrations_that_alignment_would_refuse_cost_no_sft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[set[str]] = []
    encode = training_examples.encode

    def noted(policy: Any, rows: Any) -> Any:
        encoded.append({row.id for row in rows})
        return encode(policy, rows)

    monkeypatch.setattr(training_examples, "encode", noted)
    monkeypatch.setattr(training_sft, "train_sft", lambda *given: pytest.fail("trained"))
    _workdir(monkeypatch, tmp_path)
    params = tiny_params("sft.withheld_fraction=0.3", "align.demonstrations=withheld")
    dataset = ingest.run(_sections(params, "data", source_sha256=""))
    with pytest.raises(pytest.fail.Exception):
        sft.run(_sections(params, "model", "sft"), dataset)
    rows = load_split(materialise(dataset, tmp_path), "train")
    assert {row.id for row in rows if is_withheld(row.group, 0.3)} in encoded


def test_alignment_says_how_many_prompts_leave_less_room_than_a_response_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = tiny_params("align.num_rounds=1", "align.rollout.max_response_tokens=84")
    _workdir(monkeypatch, tmp_path)
    dataset = ingest.run(_sections(params, "data", source_sha256=""))
    warm = sft.run(_sections(params, "model", "sft"), dataset)
    assert "Warning" not in capsys.readouterr().out
    align.run(_sections(params, "model", "align"), dataset, warm)
    policy, folder = load_policy(Path(warm.uri)), materialise(dataset, tmp_path)
    rows = [row for split in ("train", "validation") for row in load_split(folder, split)]
    rooms = [96 - len(policy.encode_prompt([dict(message) for message in row.messages])) for row in rows]
    few = [room for room in rooms if room < 84]
    assert 0 < len(few) < len(rooms)
    assert (
        f"Warning: {len(few)} of {len(rooms)} prompts leave less of the context of 96 tokens than "
        f"align.rollout.max_response_tokens 84, down to {min(few)}; their responses are cut there."
    ) in capsys.readouterr().out


def test_what_alignment_leaves_out_is_stored_with_its_reason_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (ROOT / "examples/tiny/demonstrations.jsonl").open(encoding="utf-8")]
    for row in [row for row in rows if "response" in row][::40]:
        row["response"] += f" {row['response']}" * 6
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    _workdir(monkeypatch, tmp_path)
    params = tiny_params(f"data.source={source}", "data.near_duplicate_threshold=null")
    dataset = ingest.run(_sections(params, "data", source_sha256=""))
    warm = sft.run(_sections(params, "model", "sft"), dataset)
    policy, _ = align.run(_sections(params, "model", "align"), dataset, warm)
    encoder, folder = load_policy(policy.uri), materialise(dataset, tmp_path)
    long: dict[str, list[tuple[str, int]]] = {}
    for split in ("train", "validation"):
        lengths = [(row.id, len(encoder.encode_response(row.response))) for row in load_split(folder, split)]
        long[split] = [(index, length) for index, length in lengths if length > 24]
    reason = "{} response tokens exceed align.rollout.max_response_tokens of 24"
    expected = [
        {"split": split, "id": index, "reason": reason.format(length)}
        for split in ("train", "validation")
        for index, length in long[split]
    ]
    stored = (Path(policy.uri) / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in stored] == expected and len(long["train"]) > 2
    index, length = long["train"][0]
    said = f"{len(long['train'])} of {dataset.splits['train']} train demonstrations are left out (skipped.jsonl)"
    assert f"{said}; the first: {index}: {reason.format(length)}." in capsys.readouterr().out
    assert not (Path(warm.uri) / "skipped.jsonl").exists()


def test_lora_with_shared_trunk_runs_on_a_pretrained_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = tiny_params()
    _workdir(monkeypatch, tmp_path)
    dataset = ingest.run(_sections(params, "data", source_sha256=""))
    warm = sft.run(_sections(params, "model", "sft"), dataset)
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"}
    pretrained = ["model.init=pretrained", f"model.path={warm.uri}", f"model.lora={lora}"]
    shared = ["align.discriminator.init=shared_lora", "align.discriminator.lora_rank=2"]
    params = tiny_params(*pretrained, *shared)
    tuned = sft.run(_sections(params, "model", "sft"), dataset)
    assert tuned.base == warm.uri and tuned.sha256 != warm.sha256
    aligned, _ = align.run(_sections(params, "model", "align"), dataset, tuned)
    names = sorted(path.name for path in Path(aligned.uri).iterdir())
    assert "adapter_model.safetensors" not in names and "model.safetensors" in names
