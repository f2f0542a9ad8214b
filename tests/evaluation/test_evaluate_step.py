"""The evaluate step on tiny real models, a real store and real events; only the dataset is handed in."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from understudy.errors import ConfigError, DataRefused
from understudy.records import DatasetRef, EvaluationReport, PolicyRef

MODEL = {
    "init": "scratch",
    "scratch": {
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "context_tokens": 256,
    },
    "path": None,
    "gguf_file": None,
    "revision": None,
    "lora": None,
    "precision": "fp32",
}
DATASET = DatasetRef("/data/ab", "ab.dir", 60, {"train": 20, "validation": 20, "test": 20}, 1, 3, "x", "y", None)


@pytest.fixture(scope="module")
def policies(fakes):
    """A new policy and a copy whose output layer is scaled, as if training had changed it."""
    import torch

    from understudy.config import ModelConfig
    from understudy.models.loading import create_policy

    texts = [row.response for row in fakes.demonstrations(30)]
    policy = create_policy(ModelConfig.model_validate(MODEL), texts, seed=1)
    changed = create_policy(ModelConfig.model_validate(MODEL), texts, seed=1)
    with torch.no_grad():
        changed.model.get_input_embeddings().weight.mul_(10.0)
    champion = create_policy(ModelConfig.model_validate(MODEL), texts, seed=2)
    return {"sft": policy, "aligned": changed, "champion": champion}


def test_sampled_logps_are_those_of_a_naive_pass_whatever_the_batch(fakes, policies, monkeypatch):
    import torch

    from understudy.evaluation import policies as module
    from understudy.evaluation.result import T1

    rows = fakes.demonstrations(5)
    loaded = module.LoadedPolicies(policies.__getitem__, max_response_tokens=12)
    samples = loaded.sample("sft", rows, T1, seed=3)
    assert samples == loaded.sample("sft", rows, T1, seed=3)
    assert samples != loaded.sample("sft", rows, T1, seed=4)
    assert all(1 <= sample.num_tokens == len(sample.token_ids) <= 12 for sample in samples)
    together = loaded.sample_logps("sft", rows, samples)
    monkeypatch.setattr(module, "LOGITS_PER_BATCH", 1)
    policy = policies["sft"]
    for row, sample, batched, alone in zip(
        rows, samples, together, loaded.sample_logps("sft", rows, samples), strict=True
    ):
        prompt = policy.encode_prompt([dict(message) for message in row.messages])
        ids = torch.tensor([[*prompt, *sample.token_ids]])
        with torch.no_grad():
            logp = policy.model(input_ids=ids).logits.log_softmax(-1)[0]
        naive = [float(logp[len(prompt) + t - 1, token]) for t, token in enumerate(sample.token_ids)]
        np.testing.assert_allclose(batched, naive, atol=1e-4)
        np.testing.assert_allclose(alone, naive, atol=1e-4)


def test_expert_logps_count_the_end_token(fakes, policies):
    from understudy.evaluation.policies import LoadedPolicies

    rows = fakes.demonstrations(4)
    sums, counts = LoadedPolicies(policies.__getitem__, 12).expert_logps("sft", rows)
    assert counts.tolist() == [len(policies["sft"].encode_response(row.response)) for row in rows]
    assert -sums.sum() / counts.sum() == pytest.approx(math.log(300), rel=0.05)  # random weights know nothing


@pytest.fixture
def arranged(fakes, policies, tmp_path, monkeypatch):
    """Return a function that runs the step in a fresh working directory."""
    from understudy.platform.steps import evaluate as step
    from understudy.platform.storage import open_store

    splits = {"validation": fakes.demonstrations(20, start=500), "test": [*fakes.demonstrations(20)]}
    monkeypatch.setattr(step, "load_demonstrations", lambda context, dataset, *names: [splits[name] for name in names])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "rule.py").write_text("def judge(prompt, response, reference):\n    return float(len(response) % 2)\n")

    def arrange(workdir_name: str, **evaluation):
        workdir = tmp_path / workdir_name
        monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(workdir))
        monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(workdir / "runs" / "r1"))
        monkeypatch.setenv("UNDERSTUDY_RUN_ID", "r1")
        monkeypatch.setenv("UNDERSTUDY_THREADS", "1")
        (workdir / "runs" / "r1").mkdir(parents=True)
        store, refs = open_store(None, workdir), {}
        for name, policy in policies.items():
            folder = tmp_path / f"{workdir_name}-{name}"
            policy.save(folder)
            base = store.put_folder(folder, "base").uri
            (folder / "history.jsonl").write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.5}\n')
            stored = store.put_folder(folder, "policy")
            # Training time differs from run to run; the report must not.
            seconds = float(len(workdir_name))
            refs[name] = PolicyRef(stored.uri, stored.sha256, name, DATASET.md5, None, "c", "d", base, seconds, 9)
        judges = [{"name": "odd", "kind": "callable", "target": f"{tmp_path / 'rule.py'}:judge"}]
        settings = {"judges": judges, "tuning_judge": "odd", "max_response_tokens": 10}
        config = fakes.config(**settings | evaluation).model_dump(mode="json")
        return step.run({"seed": 3, "code_sha256": "d", "model": MODEL, "evaluation": config}, DATASET, refs)

    arrange.splits = splits
    return arrange


def test_a_gpu_that_is_not_there_is_refused_in_words(arranged, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("UNDERSTUDY_DEVICE", "cuda")
    with pytest.raises(ConfigError, match="is cuda, but PyTorch .* Set runtime.device to auto or cpu"):
        arranged("one")


def test_rows_that_the_champion_cannot_be_given_are_told_in_the_report_and_too_many_refused(arranged, policies):
    from pathlib import Path

    def lengthen(index):
        row = arranged.splits["test"][index]
        messages = ({"role": "user", "content": row.prompt + " and so on" * 12},)
        arranged.splits["test"][index] = replace(row, messages=messages)

    longest = max(
        len(policies["champion"].encode_prompt([dict(message) for message in row.messages]))
        + len(policies["champion"].encode_response(row.response))
        for rows in arranged.splits.values()
        for row in rows
    )
    context = policies["champion"].model.config.max_position_embeddings
    policies["champion"].model.config.max_position_embeddings = longest
    try:
        lengthen(3)
        report = arranged("one")
        lengthen(7)
        with pytest.raises(
            DataRefused, match=r"2 of 20 demonstrations cannot be given to policy champion \(allowed: 5%"
        ):
            arranged("two")
    finally:
        policies["champion"].model.config.max_position_embeddings = context
    numbers = json.loads((Path(report.uri) / "report.json").read_text())
    (line,) = [json.loads(line) for line in (Path(report.uri) / "skipped.jsonl").read_text().splitlines()]
    assert line["split"] == "test" and line["id"] == "3"
    assert re.fullmatch(
        rf"policy champion: \d+ prompt \+ \d+ response tokens exceed the context of {longest}", line["reason"]
    )
    said = f"1 of 20 test demonstrations are left out (skipped.jsonl); the first: 3: {line['reason']}."
    assert said in numbers["notes"] and said in (Path(report.uri) / "report.html").read_text()
    assert numbers["notes"][0].startswith("19 test prompts in 10 independent groups.")


def test_step_stores_a_page_and_numbers_that_agree_with_its_record(arranged, tmp_path):
    from pathlib import Path

    report = arranged("one")
    folder = Path(report.uri)
    numbers = json.loads((folder / "report.json").read_text())
    page = (folder / "report.html").read_text()
    assert EvaluationReport.from_json(json.loads(json.dumps(report.to_json()))).verdict == report.verdict
    assert numbers["metrics"] == report.metrics
    assert set(report.metrics) == {"expert", "base", "sft", "aligned", "champion"}
    assert report.policies["champion"] == numbers["protocol"]["policies"]["champion"]
    pairs = [(item["a"]["policy"], item["b"]["policy"]) for item in report.comparisons]
    assert ("aligned", "champion") in pairs
    assert report.metrics["aligned"]["T=1"]["kl_to_sft"]["value"] > 0
    assert report.metrics["base"]["expert_text"]["nll"] == report.metrics["sft"]["expert_text"]["nll"]
    assert numbers["verdict"]["text"] == report.verdict
    assert report.policies["aligned"] in page and "Supervised training" in page
    events = [json.loads(line) for line in (tmp_path / "one/runs/r1/events.jsonl").read_text().splitlines()]
    progress = [event for event in events if "tokens_per_second" in json.dumps(event)]
    assert len(progress) >= 1


def test_prompts_that_leave_too_little_room_are_counted_on_the_page_and_told(arranged, fakes, policies, capsys):
    from pathlib import Path

    rows = fakes.demonstrations(20)
    rooms = {
        name: [256 - len(policies[name].encode_prompt([dict(item) for item in row.messages])) for row in rows]
        for name in ("sft", "champion")
    }
    limit = sorted(rooms["sft"])[10]
    few = {name: [room for room in found if room < limit] for name, found in rooms.items()}
    assert 0 < len(few["sft"]) < 20
    lines = [
        f"{whose}, {len(few[name])} of 20 prompts leave less of the context of 256 tokens than "
        f"evaluation.max_response_tokens {limit}, down to {min(few[name])}; their responses are cut there. Use a model "
        "with a longer context, or lower data.max_prompt_chars."
        for name, whose in (("sft", "Of the test split"), ("champion", "For the champion, of the test split"))
    ]
    report = arranged("one", max_response_tokens=limit)
    numbers = json.loads((Path(report.uri) / "report.json").read_text())
    assert numbers["notes"][-2:] == lines
    out = capsys.readouterr().out
    assert all(f"Warning: {line}" in out for line in lines)
    assert lines[0] in (Path(report.uri) / "report.html").read_text()


def test_equal_runs_in_different_folders_write_equal_bytes(arranged):
    assert arranged("one").sha256 == arranged("another-place").sha256


def test_missing_judge_is_told_before_anything_is_sampled(arranged):
    missing = [{"name": "gone", "kind": "callable", "target": "gone.py:judge"}]
    with pytest.raises(ConfigError, match="Judge 'gone': target 'gone.py:judge' does not exist"):
        arranged("one", judges=missing, tuning_judge="gone")


def test_the_gate_reads_what_the_step_wrote_about_both(arranged):
    from pathlib import Path

    from evaluation.gates import make_gate

    from understudy.evaluation.gate import decide, scores_from

    report = arranged("one")
    numbers = json.loads((Path(report.uri) / "report.json").read_text())
    aligned, champion = (scores_from(numbers, name) for name in ("aligned", "champion"))
    assert aligned.seeds == champion.seeds and len(set(aligned.seeds.values())) == 1
    assert (aligned.prompts, aligned.groups) == (champion.prompts, champion.groups)
    assert len(aligned.prompts) == 20 and len(set(aligned.groups)) == 10
    primary = [{"metric": "judge:odd", "decoding": "T=1", "minimum_improvement": 0.0, "detect": 0.9}]
    guards = [{"metric": "nll", "margin": 0.5}, {"metric": "distinct_2", "decoding": "T=1", "margin": 0.1}]
    guards += [{"metric": "eos_rate", "decoding": "greedy", "margin": 0.1}]
    gate = make_gate(*guards, primary=primary, minimum_groups=5)
    decision = decide(gate, numbers, "aligned", "champion")
    for rule, metric in zip(decision.rules[1:], ("nll", "distinct_2", "eos_rate"), strict=True):
        value = {name: report.metrics[name][rule.decoding][metric]["value"] for name in ("aligned", "champion")}
        better = -1 if metric == "nll" else 1
        assert rule.value == pytest.approx(better * (value["aligned"] - value["champion"]))
    assert decision.digests == {name: report.policies[name] for name in ("aligned", "champion")}
