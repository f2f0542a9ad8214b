"""The whole evaluation as a function of three callables, so that it can be tested without a model.

tune a temperature per policy on the validation split → sample the test prompts greedily, at T=1 and tuned
→ judge, measure, compare on the same prompts → verdict
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from understudy.config import EvaluationConfig
from understudy.data.demonstrations import Demonstration
from understudy.evaluation import intervals, metrics
from understudy.evaluation.agreement import agreement_of_judges
from understudy.evaluation.inference import fewest_groups
from understudy.evaluation.intervals import POSITIVE, SHARE, Floats, Interval, cluster_ids
from understudy.evaluation.judges import Judge, told
from understudy.evaluation.names import EXPERT_TEXT
from understudy.evaluation.result import GREEDY, T1, Decoding, EvaluationResult, Generated, Sample
from understudy.evaluation.verdict import Contender, compare, decide

COMPARED = (
    (Contender("aligned", "tuned"), Contender("sft", "tuned")),
    (Contender("aligned", "tuned"), Contender("sft_longer", "tuned")),
    (Contender("aligned", "tuned"), Contender("champion", "tuned")),
    (Contender("aligned", "T=1"), Contender("sft", "T=1")),
    (Contender("aligned", "T=1"), Contender("sft", "tuned")),
    (Contender("aligned", "greedy"), Contender("sft", "greedy")),
    (Contender("sft_longer", "tuned"), Contender("sft", "tuned")),
)


class Models(Protocol):
    """What evaluation asks of the policies, by name."""

    def sample(
        self, policy: str, demonstrations: Sequence[Demonstration], decoding: Decoding, seed: int
    ) -> list[Sample]:
        """Return one response per demonstration's prompt."""

    def expert_logps(self, policy: str, demonstrations: Sequence[Demonstration]) -> tuple[Floats, Floats]:
        """Return log-probability sums (nats) and token counts, EOS included, of the expert responses (P each)."""

    def sample_logps(
        self, policy: str, demonstrations: Sequence[Demonstration], samples: Sequence[Sample]
    ) -> list[Floats]:
        """Return the log-probabilities (nats) of each sample's tokens (T) under the policy at T=1."""


def evaluate(
    config: EvaluationConfig,
    seed: int,
    policies: Sequence[str],
    models: Models,
    test: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    judges: Sequence[Judge],
    brief: Mapping[str, int] | None = None,
    on_sampled: Callable[[int, int], None] = lambda done, total: None,
) -> EvaluationResult:
    """Measure all policies on the same test prompts with the same seeds.

    Args:
        config: the `evaluation` section.
        seed: the run's seed; every random choice derives from it.
        policies: names among "base", "sft", "aligned", "sft_longer", "champion", in the order of the report.
        models: samples and scores for a policy name.
        test: demonstrations that no policy was trained or selected on.
        validation: demonstrations on which temperatures are chosen.
        judges: judges of sampled quality, possibly none.
        brief: policy → number of prompts, for policies whose samples are only worth a glance (random weights).
        on_sampled: called with responses sampled so far and in all.
    """
    brief, names = brief or {}, [judge.name for judge in judges]
    test, validation = _subset(test, config.max_prompts, seed), _subset(validation, config.max_prompts // 2, seed)
    clusters = cluster_ids([row.group for row in test], [row.prompt for row in test])
    study = _Study(config, seed, models, list(judges), test, clusters, on_sampled)
    tuned = [policy for policy in policies if policy not in brief and policy != "base"]
    study.plan(policies, tuned, brief, len(validation))
    deciding = config.tuning_judge or (judges[0].name if judges else None)
    tuning = {policy: study.tune(policy, validation, deciding) for policy in tuned}
    temperatures = {policy: _best_temperature(tried) for policy, tried in tuning.items()}
    generated = {policy: study.generate(policy, temperatures.get(policy), brief.get(policy)) for policy in policies}
    expert_scores = {judge.name: study.judge(judge, test, [row.response for row in test]) for judge in judges}
    measured = {"expert": {EXPERT_TEXT: study.text_metrics([row.response for row in test], expert_scores)}}
    likelihood = study.add_likelihoods(measured, policies)
    for policy, by_decoding in generated.items():
        for name, responses in by_decoding.items():
            measured[policy][name] = study.sample_metrics(responses, brief=policy in brief)
    study.add_kl(measured, generated)
    comparisons = [
        compare(
            judge.name,
            a,
            b,
            generated[a.policy][a.decoding].scores[judge.name],
            generated[b.policy][b.decoding].scores[judge.name],
            clusters,
            config.confidence,
        )
        for judge in judges
        for a, b in COMPARED
        if a.policy in tuned and b.policy in tuned
    ]
    shown = np.random.default_rng(_seed(seed, "shown")).permutation(len(test))[: config.samples_shown]
    return EvaluationResult(
        config=config,
        policies=list(policies),
        test=test,
        judges=names,
        deciding_judge=deciding,
        verdict=decide(comparisons, deciding, config.confidence),
        metrics=measured,
        comparisons=comparisons,
        temperatures=temperatures,
        tuning=tuning,
        generated=generated,
        expert_scores=expert_scores,
        expert_tokens=likelihood["sft" if "sft" in likelihood else policies[-1]][1],
        likelihood=likelihood,
        clusters=clusters,
        shown=sorted(int(index) for index in shown),
        notes=study.notes(tuning, len(validation), deciding) + [judge.note() for judge in told(judges).values()],
        judge_agreement=agreement_of_judges(names, generated, tuned, clusters, config.confidence),
        judge_details={name: judge.report() for name, judge in told(judges).items()},
    )


class _Study:
    """The pieces of one evaluation that share its prompts, clusters and settings."""

    def __init__(
        self,
        config: EvaluationConfig,
        seed: int,
        models: Models,
        judges: list[Judge],
        test: list[Demonstration],
        clusters: NDArray[np.int64],
        on_sampled: Callable[[int, int], None],
    ) -> None:
        self.config, self.seed, self.models, self.judges = config, seed, models, judges
        self.test, self.clusters, self.on_sampled = test, clusters, on_sampled
        self.confidence = config.confidence
        self.sampled = self.planned = 0

    def plan(self, policies: Sequence[str], tuned: Sequence[str], brief: Mapping[str, int], num_tuning: int) -> None:
        """Count the responses to be sampled, for the progress bar."""
        per_policy = {name: min(brief.get(name, 2 * len(self.test)), 2 * len(self.test)) for name in policies}
        tuning = num_tuning * len(self.config.temperatures) if self.judges else 0
        self.planned = sum(per_policy.values()) + len(tuned) * (tuning + len(self.test))

    def judge(self, judge: Judge, rows: Sequence[Demonstration], texts: Sequence[str]) -> Floats:
        """Return the judge's scores of `texts` as responses to `rows` (P)."""
        return judge.scores([row.prompt for row in rows], texts, [row.response for row in rows])

    def tune(
        self, policy: str, validation: Sequence[Demonstration], deciding: str | None
    ) -> dict[float, Interval | None]:
        """Return the deciding judge's mean score at each temperature; empty when nothing can decide."""
        chosen = [judge for judge in self.judges if judge.name == deciding]
        if not chosen or not validation:
            return {}
        clusters = cluster_ids([row.group for row in validation], [row.prompt for row in validation])
        scores: dict[float, Interval | None] = {}
        for temperature in self.config.temperatures:
            samples = self._sample(policy, validation, Decoding("tuning", temperature))
            texts = [sample.text for sample in samples]
            scores[temperature] = intervals.mean(self.judge(chosen[0], validation, texts), clusters, self.confidence)
        return scores

    def generate(self, policy: str, temperature: float | None, num_brief: int | None) -> dict[str, Generated]:
        """Sample and judge the test prompts in every decoding of this policy."""
        if num_brief is not None:
            return {"T=1": self._judged(policy, self.test[:num_brief], T1)}
        found = {decoding.name: self._judged(policy, self.test, decoding) for decoding in (GREEDY, T1)}
        if temperature == 1.0:
            found["tuned"] = found["T=1"]
            self._report(len(self.test))
        elif temperature is not None:
            found["tuned"] = self._judged(policy, self.test, Decoding("tuned", temperature))
        return found

    def text_metrics(self, texts: list[str], scores: Mapping[str, Floats]) -> dict[str, Interval]:
        """Return the metrics that any set of responses to the test prompts has."""
        clusters = self.clusters[: len(texts)]
        found = {f"judge_{name}": intervals.mean(each, clusters, self.confidence) for name, each in scores.items()}
        lengths = [len(text) for text in texts]
        found["length_characters"] = intervals.mean(lengths, clusters, self.confidence, POSITIVE)
        if len(texts) == len(self.test):
            for n in (1, 2, 3):
                found[f"distinct_{n}"] = metrics.distinct_interval(texts, n, clusters, self.confidence)
            seed = _seed(self.seed, "self_bleu")
            found["self_bleu"] = metrics.self_bleu_interval(texts, seed, clusters, self.confidence)
        return {name: interval for name, interval in found.items() if interval is not None}

    def sample_metrics(self, generated: Generated, brief: bool) -> dict[str, Interval]:
        """Return the metrics of sampled responses."""
        samples, clusters, confidence = generated.samples, self.clusters[: len(generated.samples)], self.confidence
        found = self.text_metrics(generated.texts, generated.scores)
        references = [row.response for row in self.test[: len(samples)]]
        tokens, finished = ([getattr(sample, name) for sample in samples] for name in ("num_tokens", "finished"))
        chrf_P = metrics.chrf(generated.texts, references)
        more: dict[str, Interval | None] = {
            "length_tokens": intervals.mean(tokens, clusters, confidence, POSITIVE),
            "eos_rate": intervals.mean(finished, clusters, confidence, SHARE),
            "chrf_to_expert": intervals.mean(chrf_P, clusters, confidence, metrics.PERCENT),
        }
        if not brief:
            more["classifier_auc"] = metrics.classifier_auc(
                references, generated.texts, clusters, confidence, self.seed
            )
        return found | {name: interval for name, interval in more.items() if interval is not None}

    def add_likelihoods(
        self, measured: dict[str, dict[str, dict[str, Interval]]], policies: Sequence[str]
    ) -> dict[str, tuple[Floats, Floats]]:
        """Add NLL, perplexity and the paired NLL difference to SFT; return log-probability sums and token counts."""
        found: dict[str, tuple[Floats, Floats]] = {}
        for policy in policies:
            sums, counts = found[policy] = self.models.expert_logps(policy, self.test)
            measured[policy] = {EXPERT_TEXT: metrics.nll(sums, counts, self.clusters, self.confidence)}
        for policy in [name for name in policies if "sft" in found and name != "sft"]:
            (sums, counts), (sums_sft, counts_sft) = found[policy], found["sft"]
            # Values per token compare only where one tokenizer made the tokens.
            difference = intervals.difference(sums_sft, sums, self.clusters, self.confidence, counts)
            if difference is not None and np.array_equal(counts, counts_sft):
                measured[policy][EXPERT_TEXT]["nll_minus_sft"] = difference
        counts = found["sft" if "sft" in found else policies[-1]][1]
        tokens = intervals.mean(counts, self.clusters, self.confidence, POSITIVE)
        if tokens is not None:
            measured["expert"][EXPERT_TEXT]["length_tokens"] = tokens
        return found

    def add_kl(
        self, measured: dict[str, dict[str, dict[str, Interval]]], generated: dict[str, dict[str, Generated]]
    ) -> None:
        """Add KL to SFT for policies that were trained from it, from their samples at T=1."""
        for policy in [name for name in ("aligned", "sft_longer") if name in generated and "sft" in generated]:
            samples = generated[policy]["T=1"].samples
            own = self.models.sample_logps(policy, self.test, samples)
            reference = self.models.sample_logps("sft", self.test, samples)
            kl = metrics.kl_to_reference(own, reference, self.clusters, self.confidence)
            if kl is not None:
                measured[policy]["T=1"]["kl_to_sft"] = kl

    def notes(
        self, tuning: Mapping[str, dict[float, Interval | None]], num_validation: int, deciding: str | None
    ) -> list[str]:
        """Return what a reader must know to read the numbers right."""
        num_groups, fewest = len(set(self.clusters.tolist())), fewest_groups(self.confidence)
        prompts = f"{len(self.test)} test prompts in {num_groups} independent groups."
        if num_groups < fewest:
            notes = [f"{prompts} That is too few for intervals at {self.confidence:.0%}, which take {fewest}."]
        else:
            notes = [f"{prompts} Intervals are at {self.confidence:.0%}, by the gate's inference over groups."]
        if tuning and all(tuning.values()):
            notes.append(
                f"Tuned temperatures are those with the highest mean score of {deciding} on {num_validation} "
                "validation prompts, searched for each policy alone."
            )
        else:
            notes.append("No judge or no validation prompt could choose a temperature, so the tuned temperature is 1.")
        return notes

    def _judged(self, policy: str, rows: Sequence[Demonstration], decoding: Decoding) -> Generated:
        samples = self._sample(policy, rows, decoding)
        texts = [sample.text for sample in samples]
        scores = {judge.name: self.judge(judge, rows, texts) for judge in self.judges}
        return Generated(decoding, self._sampling_seed(decoding), samples, scores)

    def _sample(self, policy: str, rows: Sequence[Demonstration], decoding: Decoding) -> list[Sample]:
        samples = self.models.sample(policy, rows, decoding, self._sampling_seed(decoding))
        self._report(len(rows))
        return samples

    def _sampling_seed(self, decoding: Decoding) -> int:
        # It names neither the policy nor the temperature: all of them meet the same randomness, which pairs them.
        return _seed(self.seed, "tuning" if decoding.name == "tuning" else "test")

    def _report(self, num_sampled: int) -> None:
        self.sampled += num_sampled
        self.on_sampled(self.sampled, max(self.planned, self.sampled))


def _best_temperature(tried: Mapping[float, Interval | None]) -> float:
    """Return the temperature with the highest score; of equals the highest, which is the most diverse.

    Without any score it is 1, the only temperature that the training likelihood speaks for.
    """
    scored = [(found.value, temperature) for temperature, found in tried.items() if found is not None]
    return max(scored)[1] if scored else 1.0


def _subset(rows: Sequence[Demonstration], limit: int, seed: int) -> list[Demonstration]:
    """Return at most `limit` rows, chosen by seed, in their own order."""
    chosen = np.random.default_rng(_seed(seed, "subset")).permutation(len(rows))[: max(1, limit)]
    return [rows[index] for index in sorted(chosen.tolist())]


def _seed(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:6], "big")
