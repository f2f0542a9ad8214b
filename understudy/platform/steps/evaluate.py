"""Step evaluate: policies and a dataset version in, numbers with intervals and the report page out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.config import EvaluationConfig, ModelConfig, validate
from understudy.data.files import temporary_folder
from understudy.platform import where
from understudy.platform.context import StepContext, current_run, step_context
from understudy.platform.ladder import ladder_for_report, open_ladder
from understudy.platform.steps.training import (
    account_for_skipped,
    count_of_skipped,
    load_demonstrations,
    write_jsonl,
)
from understudy.records import DatasetRef, DiscriminatorRef, EvaluationReport, PolicyRef, Record

if TYPE_CHECKING:
    from understudy.data.demonstrations import Demonstration
    from understudy.evaluation.policies import LoadedPolicies
    from understudy.evaluation.result import EvaluationResult
    from understudy.models.language_model import LanguageModel
    from understudy.training.examples import Example

RANDOM_BASE_PROMPTS = 20  # samples of random weights are worth a glance, not a measurement
ORDER = ("base", "sft", "aligned", "sft_longer", "champion")
# What depends on the clock or on the machine's folders would make equal runs write unequal pages.
UNSTABLE = {"uri", "base", "train_seconds", "source"}
PACKAGES = ("numpy", "sacrebleu", "scikit-learn", "scipy", "tokenizers", "torch", "transformers", "understudy")
LOGGED = ("judge_", "nll", "classifier_auc", "distinct_2", "self_bleu", "length_tokens", "eos_rate", "kl_to_sft")


def run(
    config: Mapping[str, Any],
    dataset: DatasetRef,
    policies: Mapping[str, PolicyRef],
    discriminator: DiscriminatorRef | None = None,
) -> EvaluationReport:
    """Measure the policies on the test split by `config["evaluation"]`; store `report.html` and `report.json`.

    Args:
        config: seed, code_sha256, model, evaluation, and digests of the judges' code.
        dataset: the dataset version whose test split is used.
        policies: by name: "sft", through which the base is found, "aligned", "sft_longer", and "champion" if any.
        discriminator: named in the provenance; the page's AUC comes from a fresh classifier instead.
    """
    with step_context("evaluate", config) as context:
        model = validate(ModelConfig, config["model"], "model")
        settings = validate(EvaluationConfig, config["evaluation"], "evaluation")
        validation, test = load_demonstrations(context, dataset, "validation", "test")
        from understudy.evaluation.evaluate import evaluate
        from understudy.evaluation.judges import load_judge
        from understudy.evaluation.judges_bradley_terry import fit_judges

        judges = [load_judge(judge, cache=context.workdir / "judge-cache") for judge in settings.judges]
        models = _load_lazily(context, model, policies, settings.max_response_tokens)
        names = [name for name in ORDER if name == "base" or name in policies]

        def on_sampled(done: int, total: int) -> None:
            shown = {"tokens_per_second": models.tokens_per_second}
            context.tracker.progress(done, total, "responses", shown)

        left_out = _LeftOut(context, models)
        rows = left_out.drop("test", test, names), left_out.drop("validation", validation, names)
        short = left_out.too_little_room("test", rows[0], settings.max_response_tokens)
        for line in short:
            context.note(f"Warning: {line}")
        brief = {"base": RANDOM_BASE_PROMPTS} if model.init == "scratch" else {}
        with context.working():
            if any(judge.kind == "bradley_terry" for judge in settings.judges):
                (train,) = load_demonstrations(context, dataset, "train")
                fitting = left_out.drop("train", train, ["sft"])
                fit_judges(judges, models, fitting, rows[1], context.seed, settings.confidence)
            result = evaluate(settings, context.seed, names, models, *rows, judges, brief, on_sampled)
        result = replace(result, notes=[*result.notes, *left_out.notes, *short])
        records: dict[str, Record] = {"dataset": dataset, **policies}
        if discriminator is not None:
            records["discriminator"] = discriminator
        report = _store(context, result, records, policies, left_out.lines)
        if mlflow_run := current_run():
            mlflow_run.log_artifact(context.store.fetch(report.uri, report.sha256) / "report.html")
        context.tracker.log(0, _logged(result))
        context.finish(report)
        return report


def _load_lazily(
    context: StepContext, model: ModelConfig, policies: Mapping[str, PolicyRef], max_response_tokens: int
) -> LoadedPolicies:
    import torch

    from understudy.evaluation.policies import LoadedPolicies
    from understudy.models.devices import resolve_device
    from understudy.models.loading import load_policy

    torch.set_num_threads(context.threads)
    device = resolve_device(context.device)

    def load(name: str) -> LanguageModel:
        if name == "base":
            policy = _base(context, model, policies["sft"])
        else:
            policy = load_policy(context.store.fetch(policies[name].uri, policies[name].sha256))
        policy.model.to(device).eval()
        return policy

    return LoadedPolicies(load, max_response_tokens)


def _base(context: StepContext, model: ModelConfig, sft: PolicyRef) -> LanguageModel:
    """Return the policy before any training; a new one was stored under the digest that ends its URI."""
    from understudy.models.loading import create_policy, load_policy

    if model.init == "pretrained":
        return create_policy(model.model_copy(update={"lora": None}), (), context.seed)
    return load_policy(context.store.fetch(sft.base, sft.base.rstrip("/").rpartition("/")[2]))


class _LeftOut:
    """The account of rows on which policies cannot be compared, because one of them cannot be given those.

    Attributes:
        lines: split, id and reason of each.
        notes: a sentence for each split that has any.
    """

    def __init__(self, context: StepContext, models: LoadedPolicies) -> None:
        self._context, self._models = context, models
        self.lines: list[dict[str, str]] = []
        self.notes: list[str] = []
        self._examples: dict[tuple[str, str], list[Example]] = {}

    def drop(self, split: str, rows: Sequence[Demonstration], names: Sequence[str]) -> list[Demonstration]:
        """Return the rows that all of these policies can be given.

        Raises:
            DataRefused: one of them cannot be given too many.
        """
        from understudy.training.examples import encode

        reasons: dict[str, str] = {}
        # The others have tokenizer and context of SFT's policy.
        for name in [name for name in ("sft", "champion") if name in names]:
            encoded = encode(self._models.policy(name), rows, f"policy {name}")
            self._examples[split, name] = encoded.examples
            for line in encoded.skipped:
                reasons.setdefault(line["id"], f"policy {name}: {line['reason']}")
        skipped = [{"id": index, "reason": reason} for index, reason in reasons.items()]
        self.lines += account_for_skipped(self._context, split, skipped, len(rows))
        self.notes += [count_of_skipped(split, skipped, len(rows))] if skipped else []
        return [row for row in rows if row.id not in reasons]

    def too_little_room(self, split: str, kept: Sequence[Demonstration], max_response_tokens: int) -> list[str]:
        """Return a line for the policies of this run and one for the champion, where kept prompts leave too little."""
        from understudy.training.examples import too_little_room

        lines, kept_ids = [], {row.id for row in kept}
        for name, whose in (("sft", "Of"), ("champion", "For the champion, of")):
            examples = [each for each in self._examples.get((split, name), []) if each.id in kept_ids]
            asked = "evaluation.max_response_tokens", max_response_tokens
            if examples and (short := too_little_room(self._models.policy(name), examples, *asked)):
                lines.append(f"{whose} the {split} split, {short}.")
        return lines


def _store(
    context: StepContext,
    result: EvaluationResult,
    records: Mapping[str, Record],
    policies: Mapping[str, PolicyRef],
    skipped: Sequence[Mapping[str, str]],
) -> EvaluationReport:
    from understudy.evaluation.gate_view import ask_gate
    from understudy.evaluation.report import render_report

    stable = {
        name: {key: value for key, value in record.to_json().items() if key not in UNSTABLE}
        for name, record in records.items()
    }
    provenance = {"Records and digests": stable, "Configuration": dict(context.config), "Versions": _versions()}
    histories = {
        name: _history(context.store.fetch(policy.uri, policy.sha256) / "history.jsonl")
        for name, policy in policies.items()
    }
    title = str(context.config.get("name", "policy on " + records["dataset"].to_json()["md5"][:8]))
    whole = result.to_json() | {"provenance": provenance, "protocol": _protocol(context, records, policies)}
    if (aligned := policies.get("aligned")) and aligned.stopped_by is not None:
        whole["stopped_by"] = aligned.stopped_by
    if ladder := ladder_for_report(open_ladder(context.workdir, where.storage_uri()), whole):
        whole["ladder"] = ladder
    answer = ask_gate(Path(os.environ.get("UNDERSTUDY_GATE", "gate.yaml")), whole)
    page = render_report(result, histories, provenance, title, answer, whole)
    numbers = json.dumps(whole, sort_keys=True, indent=1, allow_nan=False)
    with temporary_folder(context.workdir) as folder:
        (folder / "report.html").write_text(page, encoding="utf-8")
        (folder / "report.json").write_text(numbers + "\n", encoding="utf-8")
        if skipped:
            write_jsonl(folder / "skipped.jsonl", skipped)
        stored = context.store.put_folder(folder, "report")
    return EvaluationReport(
        uri=stored.uri,
        sha256=stored.sha256,
        dataset_md5=records["dataset"].to_json()["md5"],
        policies={name: policy.sha256 for name, policy in policies.items()},
        metrics=result.metrics_json(),
        comparisons=[comparison.to_json() for comparison in result.comparisons],
        verdict=str(result.verdict),
    )


def _protocol(context: StepContext, records: Mapping[str, Record], policies: Mapping[str, PolicyRef]) -> dict[str, Any]:
    """Return what two policies' numbers must share to be pairs, for the gate."""
    judges = context.config.get("judges_sha256") or {}
    return {
        "seed": context.seed,
        "dataset_md5": records["dataset"].to_json()["md5"],
        "policies": {name: policy.sha256 for name, policy in policies.items()},
        "judges": {judge["name"]: judges.get(judge["name"]) for judge in context.config["evaluation"]["judges"]},
    }


def _history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    image = os.environ.get("UNDERSTUDY_IMAGE_DIGEST")
    versions = {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}
    return versions | ({"image": image} if image else {})


def _logged(result: EvaluationResult) -> dict[str, float]:
    """Return the numbers worth a place in the tracking store, under names that it accepts."""
    logged = {
        f"{policy}/{decoding.replace('=', '')}/{name}": interval.value
        for policy, decodings in result.metrics.items()
        for decoding, values in decodings.items()
        for name, interval in values.items()
        if name.startswith(LOGGED)
    }
    for comparison in result.comparisons:
        if comparison.win_rate is not None:
            pair = "_vs_".join(
                f"{side.policy}_{side.decoding.replace('=', '')}" for side in (comparison.a, comparison.b)
            )
            logged[f"win_rate/{comparison.judge}/{pair}"] = comparison.win_rate.value
    return logged
