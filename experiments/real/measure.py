"""What is sampled of a policy on held-out groups and measured of it; what is tuned is tuned on validation rows.

Shapes: P prompts, B sequences.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from understudy.config import EvaluationConfig
from understudy.data.demonstrations import Demonstration
from understudy.evaluation import metrics
from understudy.evaluation.intervals import Floats, cluster_ids
from understudy.evaluation.judges import Judge, load_judge
from understudy.evaluation.policies import LoadedPolicies
from understudy.models.generation import SamplingSettings, generate
from understudy.models.language_model import LanguageModel
from understudy.objectives.adversarial import AdversarialObjective
from understudy.objectives.best_of_n import select_best
from understudy.training.discriminating import last_logits
from understudy.training.loop import step_seed

TOP_PS = (0.9, 0.7)
_ROWS = 192


@dataclass(frozen=True)
class Place:
    """Settings of the measurement and the folder that judges are found from."""

    config: EvaluationConfig
    seed: int
    root: Path
    by_character: bool
    encoder: Path | None  # folder of MiniLM; None where responses are no language


@dataclass(frozen=True)
class Chooser:
    """Takes the best of several samples by a discriminator."""

    discriminator: Any
    objective: AdversarialObjective
    num: int = 8

    @torch.no_grad()
    def __call__(
        self, policy: LanguageModel, prompts: Sequence[list[int]], responses: Sequence[list[int]]
    ) -> list[int]:
        """Rows of the best of each group of `num`; prompts are repeated as the responses are."""
        self.discriminator.eval()
        batch = policy.batch(prompts, responses)
        output_BTn = self.discriminator(batch)
        row_B = torch.arange(len(prompts), device=output_BTn.device)
        logp_BT = torch.zeros_like(batch.mask_BT, dtype=torch.float32)
        scores = self.objective.scores(output_BTn, logp_BT, batch.mask_BT, row_B)
        return [int(row) for row in select_best(last_logits(scores), self.num)]


def sample_decodings(
    policy: LanguageModel,
    validation: Sequence[Demonstration],
    test: Sequence[Demonstration],
    place: Place,
    choose: Chooser | None,
) -> dict[str, Any]:
    """Return all that a policy is needed for: NLL, and samples at T=1 and at the decoding that validation chose.

    The first judge of the params chooses; the others are for `measure`, which needs no policy.
    """
    judge = load_judge(place.config.judges[0], root=place.root)
    tuning = {}
    for name, settings in decodings(place.config).items():
        texts, _ = sample(policy, validation, settings, step_seed(place.seed, "tuning"), choose)
        tuning[name] = _mean(_judged(judge, validation, texts))
    best = max(tuning, key=lambda name: tuning[name])
    sampled = {}
    for name in dict.fromkeys(("T=1", best)):  # sampled once where they are the same
        settings = decodings(place.config)[name]
        texts, finished = sample(policy, test, settings, step_seed(place.seed, "test"), choose)
        sampled[name] = {"texts": texts, "finished": finished}
    shown = {"T=1": sampled["T=1"], "tuned": sampled[best]}
    made: dict[str, Any] = {"validation": tuning, "tuned": best, "decodings": shown}
    if choose is None:
        models = LoadedPolicies(lambda _: policy, place.config.max_response_tokens)
        sums, counts = models.expert_logps("policy", test)
        made["nll"] = [round(float(value), 4) for value in -sums]
        made["expert_tokens"] = [int(count) for count in counts]
    return made


def measure(sampled: Mapping[str, Mapping[str, Any]], test: Sequence[Demonstration], place: Place) -> dict[str, Any]:
    """Return all that is measured of the samples at each decoding.

    The first judge of the params decides, the others tell more.
    """
    judges = {judge.name: load_judge(judge, root=place.root) for judge in place.config.judges}
    return {shown: of_texts(made["texts"], made["finished"], judges, test, place) for shown, made in sampled.items()}


def decodings(config: EvaluationConfig) -> dict[str, SamplingSettings]:
    """T=1, the temperatures of the params, and two nuclei."""
    length = config.max_response_tokens
    cooler = {f"T={value:g}": SamplingSettings(length, value) for value in (1.0, *config.temperatures)}
    return cooler | {f"top-p={value:g}": SamplingSettings(length, 1.0, value) for value in TOP_PS}


def sample(
    policy: LanguageModel,
    rows: Sequence[Demonstration],
    settings: SamplingSettings,
    seed: int,
    choose: Chooser | None = None,
) -> tuple[list[str], list[bool]]:
    """One response a row, or the best of several, and whether each came to its end."""
    generator = torch.Generator(policy.device).manual_seed(seed)
    prompts = [policy.encode_prompt([dict(message) for message in row.messages]) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: len(prompts[index]))
    repeats = choose.num if choose else 1
    found: dict[int, tuple[str, bool]] = {}
    for start in range(0, len(order), max(1, _ROWS // repeats)):
        chosen = order[start : start + max(1, _ROWS // repeats)]
        asked = [prompts[index] for index in chosen]
        rollouts = generate(policy, asked, settings, generator, repeats)
        repeated = [prompt for prompt in asked for _ in range(repeats)]
        kept = choose(policy, repeated, rollouts.responses) if choose else range(len(chosen))
        for index, row in zip(chosen, kept, strict=True):
            found[index] = policy.decode(rollouts.responses[row]), rollouts.finished[row]
    return [found[index][0] for index in range(len(rows))], [found[index][1] for index in range(len(rows))]


def of_texts(
    texts: Sequence[str],
    finished: Sequence[bool],
    judges: Mapping[str, Judge],
    rows: Sequence[Demonstration],
    place: Place,
) -> dict[str, Any]:
    """Scores and lengths of each prompt, for pairing; and what only a set of texts has."""
    told = {name: [_short(value) for value in _judged(judge, rows, texts)] for name, judge in judges.items()}
    scores = told.pop(next(iter(judges)))
    references = [row.response for row in rows]
    clusters = cluster_ids([row.group for row in rows], [row.prompt for row in rows])
    labels = [int(label) for label in clusters]
    auc = metrics.classifier_auc(references, texts, clusters, 0.95, place.seed)
    spelt = [" ".join(text) for text in texts] if place.by_character else texts
    bleu = metrics.self_bleu(spelt, place.seed)
    chrf_P = metrics.chrf(texts, references)
    similarities, fresh = _by_encoder(texts, references, labels, place)
    # Judges that decide nothing; without an encoder responses are no language, and chrF says nothing of them.
    others = similarities | {"chrf": chrf_P / 100} if similarities else {}
    return {
        "scores": scores,
        "others": {name: [_short(value) for value in score_P] for name, score_P in others.items()} | told,
        "lengths": [len(text) for text in texts],
        "clusters": labels,
        "distinct_2": _finite(metrics.distinct_n(spelt, 2)),
        "self_bleu": _finite(float(bleu.mean())) if len(bleu) else None,
        "auc": _finite(auc.value) if auc else None,
        **fresh,
        "chrf": _finite(float(chrf_P.mean())),
        "finished": sum(finished) / len(finished),
    }


def _by_encoder(
    texts: Sequence[str], references: Sequence[str], cluster_P: Sequence[int], place: Place
) -> tuple[dict[str, Floats], dict[str, float | None]]:
    """Similarity to the expert's own responses, and the AUC of a second fresh classifier, of prose or code."""
    if place.encoder is None:
        return {}, {}
    from experiments.real import minilm

    embedding_PD, reference_PD = (_embeddings(tuple(some), place.encoder) for some in (texts, references))
    found = minilm.classifier_auc(embedding_PD, reference_PD, cluster_P, place.seed)
    return {"minilm": minilm.similarity(embedding_PD, reference_PD)}, {
        "auc_minilm": None if found is None else _finite(found)
    }


@functools.lru_cache(maxsize=2)  # the expert's responses come again with every decoding and arm
def _embeddings(texts: tuple[str, ...], folder: Path) -> torch.Tensor:
    from experiments.real import minilm

    return minilm.embeddings(texts, folder)


def _judged(judge: Judge, rows: Sequence[Demonstration], texts: Sequence[str]) -> Floats:
    return judge.scores([row.prompt for row in rows], texts, [row.response for row in rows])


def _mean(scores: Floats) -> float:
    decided = scores[~torch.tensor(scores).isnan().numpy()]
    return round(float(decided.mean()), 4) if len(decided) else 0.0


def _short(value: float) -> float | int | None:
    if math.isnan(value):
        return None
    return int(value) if value in (0.0, 1.0) else round(float(value), 4)


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
