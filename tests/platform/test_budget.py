"""GPU hours: estimated from tokens, params and a rate; bounded by deadlines; measured in MLflow."""

from __future__ import annotations

import sys
import time
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from understudy.config import Params, load_params
from understudy.platform import budget
from understudy.tracker import ListTracker

ROOT = Path(__file__).parents[2]


def params(*overrides: str) -> Params:
    return load_params(ROOT / "params.yaml", overrides)


SMALL = [
    "platform.estimate={train_tokens: 1000, prompt_tokens: 10}",
    "sft.epochs=2",
    "align.num_rounds=5",
    "align.rollout.prompts_per_round=3",
    "align.rollout.responses_per_prompt=2",
    "align.rollout.max_response_tokens=20",
    "align.discriminator.warmup_rounds=1",
    "align.discriminator.warmup_updates_per_round=4",
    "align.discriminator.updates_per_round=2",
    "align.discriminator.batch_pairs=8",
    "evaluation.max_prompts=7",
    "evaluation.max_response_tokens=30",
    "evaluation.temperatures=[0.5]",
]


def test_token_passes_by_hand() -> None:
    given = params(*SMALL)
    passes = budget.token_passes(given)
    assert passes["sft"] == 2 * 1000 * 3
    sampled = 6 * (3 * 10 + 6 * 20)  # each prompt is read once, for two responses of 20
    improved = 5 * 6 * 30 * (3 + 3)  # not in the warm-up: read by three networks, learned from by one
    pairs = (1 * 4 + 5 * 2) * 8 * 2 * 30 * 3
    measured = 2 * (4 * 8) * (30 + 2 * 30)  # after rounds 5 and 6: sampled and judged beside the expert's
    assert passes["align"] == passes["sft_longer"] == sampled + improved + pairs + measured == 32220

    def aligned(*overrides: str) -> int:
        return budget.token_passes(params(*SMALL, *(f"align.{override}" for override in overrides)))["align"]

    # A table of n-grams costs nothing.
    assert aligned("discriminator.init=ngrams") == sampled + 5 * 6 * 30 * (2 + 3) + 2 * (4 * 8) * 30 == 7320
    # Values are read, then two epochs of policy and value; the discriminator learns in the warm-up alone with rlhf.
    ppo = 5 * 6 * 30 * (3 + 1 + 2 * 2 * 3)
    assert aligned("policy_update=ppo") == sampled + ppo + pairs + measured
    assert aligned("method=rlhf") == sampled + ppo + 4 * 8 * 2 * 30 * 3 + measured
    # The opponent reads the experts' responses, then two steps on pairs; the best of each prompt's two.
    assert aligned("method=selfplay") == sampled + 5 * 6 * 30 * (3 + 1 + 2 * 2 * 3) + pairs + measured
    assert aligned("method=iterative_sft") == sampled + 5 * 30 * (6 * 3 + 3 * 3) + pairs + measured
    imitated = 5 * 3 * 30 * 3  # the expert's response to each of three prompts
    assert aligned("sft_coefficient_start=0.1") == 32220 + imitated
    assert aligned("policy_update=ppo", "sft_coefficient_end=0.1") == aligned("policy_update=ppo") + 2 * imitated
    # Four policies, the champion among them: 7 // 2 prompts at one temperature, then 7 in three ways; the base in one.
    assert passes["evaluate"] == 30 * (4 * (3 * 1 + 7 * 3) + 7) == 3090
    pretrained = given.model_copy(update={"model": given.model.model_copy(update={"init": "pretrained"})})
    assert budget.token_passes(pretrained)["evaluate"] == 30 * (4 * 24 + 2 * 7)
    unjudged = given.evaluation.model_copy(update={"judges": ()})
    unjudged_params = given.model_copy(update={"evaluation": unjudged})
    assert budget.token_passes(unjudged_params)["evaluate"] == 30 * (4 * 21 + 7)


def test_hours_are_passes_over_the_measured_rate() -> None:
    given = params("platform.estimate={train_tokens: 1000000, token_passes_per_gpu_second: 1000}", "sft.epochs=1.2")
    assert budget.estimate(given).steps["sft"] == 1.0  # 3.6 million passes at 1000 a second
    twice = params("platform.estimate={train_tokens: 1000000, token_passes_per_gpu_second: 2000}", "sft.epochs=1.2")
    assert budget.estimate(twice).steps["sft"] == 0.5
    assert budget.estimate(given).gpu_hours == pytest.approx(sum(budget.estimate(given).steps.values()), abs=0.01)


def test_what_a_budget_cannot_hold() -> None:
    given = params("platform.steps.align={nodes: 2, gpus: 4, timeout_seconds: 3600}", "sft.epochs=80")
    expected = budget.estimate(given)
    assert "the estimate is" in str(budget.over_budget(given, expected, expected.gpu_hours - 0.1))
    assert "(sft 13.333;" in str(budget.over_budget(given, expected, 1.0))
    cheap = params("platform.steps.align={nodes: 2, gpus: 4, timeout_seconds: 20000}")
    problem = str(budget.over_budget(cheap, budget.estimate(cheap), 40.0))
    assert "step align may hold 8 GPU for 20000 s = 44.4444 GPU hours, the budget is 40" in problem
    assert "platform.steps.align.timeout_seconds to 18000 or less" in problem
    assert budget.over_budget(cheap, budget.estimate(cheap), 45.0) is None
    assert budget.gpus_of(cheap) == {"sft": 1, "align": 8, "sft_longer": 1, "evaluate": 1}
    assert budget.deadline_seconds(cheap, 45.0) == 45 * 3600 / 8


def gpu_machine(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    cuda = types.SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))


def test_an_attempt_reports_what_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tracker = ListTracker()
    gpu_machine(monkeypatch, 0)
    budget.report(tracker, time.monotonic() - 3600)
    assert tracker.logged == []
    gpu_machine(monkeypatch, 2)
    budget.report(tracker, time.monotonic() - 1800)
    monkeypatch.setenv("WORLD_SIZE", "16")
    budget.report(tracker, time.monotonic() - 900)
    hours = [values["gpu_hours"] for _, values in tracker.logged]
    assert hours == [pytest.approx(1.0, abs=1e-3), pytest.approx(4.0, abs=1e-3)]


def test_actual_cost_adds_attempts_and_steps_up(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("understudy", artifact_location=(tmp_path / "artifacts").as_uri())
    for step, hours, passes in (("sft", [0.5, 0.25], "2700000"), ("evaluate", [0.25], None), ("ingest", [], None)):
        tags = {"understudy.step": step, "understudy.run_id": "run-1"}
        run = client.create_run(
            experiment, tags=tags | ({"understudy.result.compute_token_passes": passes} if passes else {})
        )
        for index, value in enumerate(hours):
            client.log_metric(run.info.run_id, "gpu_hours", value, step=index)
    cost = budget.actual(client, "understudy", "run-1")
    assert (cost.gpu_hours, cost.steps) == (1.0, {"sft": 0.75, "evaluate": 0.25})
    assert cost.token_passes_per_gpu_second == 1000.0  # 2.7 million passes in 0.75 hours: evaluation counts none
    assert budget.actual(client, "understudy", "run-2").gpu_hours == 0
    assert budget.actual(client, "another", "run-1").gpu_hours == 0


def run(state: str = "RUNNING", job: str = "job", **starts: float) -> Any:
    tasks = [
        types.SimpleNamespace(display_name=name, start_time=datetime.fromtimestamp(start, UTC) if start else None)
        for name, start in starts.items()
    ]
    details = types.SimpleNamespace(task_details=tasks) if tasks else None
    created = datetime.fromtimestamp(1000, UTC)
    return types.SimpleNamespace(state=state, recurring_run_id=job, run_details=details, created_at=created)


@pytest.mark.parametrize(
    ("item", "seconds"),
    [
        (run(), 4000),  # nothing is known but when it was created
        (run(ingest=1100.0, sft=3000.0), None),  # 2000 s with GPUs, 3000 allowed
        (run(ingest=1100.0, sft=1500.0, align=4500.0), 3500),  # from the first GPU step on
        (run(ingest=1100.0), None),  # still on CPU
        (run(ingest=1100.0, sft=0), None),  # waiting for a GPU
        (run("SUCCEEDED"), None),
        (run("CANCELING"), None),
        (run(job="foreign"), None),
        (run(job=""), None),
    ],
)
def test_who_is_overdue(item: Any, seconds: float | None) -> None:
    found = budget.overdue([item], {"job": 3000.0}, now=5000.0)
    assert found == ([] if seconds is None else [(item, seconds, 3000.0)])
