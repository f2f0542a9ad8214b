"""What would keep the last step from promoting whatever the numbers say; better told before hours of training."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.config import PromotionConfig
from understudy.config.sections import did_you_mean
from understudy.errors import UnderstudyError
from understudy.platform import where

if TYPE_CHECKING:
    from understudy.evaluation.gate.schema import Gate, ProvenanceRules


def promotion_problems(promotion: PromotionConfig, gate_yaml: str, judges: Sequence[str] | None) -> Iterator[str]:
    """Yield what is wrong with the gate, the repository, the code and the keys.

    `judges` are the names that evaluation has, None where they are wrong themselves, which is told elsewhere.

    In a pod, only what every pod of the run has in common: keys and Git's credentials are given to the last step alone.
    """
    from understudy.evaluation.gate.schema import load_gate

    here = "UNDERSTUDY_RUNNER_PID" in os.environ
    with tempfile.TemporaryDirectory(prefix="understudy-preflight-") as scratch:
        path = Path(scratch) / "gate.yaml"
        path.write_text(gate_yaml, encoding="utf-8")
        try:
            gate = load_gate(path)
        except UnderstudyError as error:
            yield f"promotion.gate: {error}"
        else:
            if judges is not None:
                yield from _judge_problems(gate, judges)
            yield from _code_problems(gate.provenance)
            if here:
                yield from _key_problems(gate.provenance)
        if promotion.gitops is not None:
            yield from _deployment_problems(promotion, Path(scratch), here)


def _judge_problems(gate: Gate, judges: Sequence[str]) -> Iterator[str]:
    from understudy.evaluation.gate.schema import JUDGE

    found = [JUDGE.fullmatch(rule.metric) for rule in (*gate.primary, *gate.guards)]
    for name in sorted({match["name"] for match in found if match} - set(judges)):
        hint = did_you_mean(name, judges, f"evaluation.judges has {', '.join(judges) or 'none'}")
        yield f"promotion.gate: it asks for judge:{name}, which evaluation does not have; {hint}"


def _code_problems(rules: ProvenanceRules) -> Iterator[str]:
    from understudy.platform.registry import code_origin

    origin = code_origin()
    if not rules.allow_dirty_code and (origin["git_dirty"] != "false" or origin["git_commit"] == "unknown"):
        yield (
            f"promotion: the code is commit {origin['git_commit'][:12]}, changed since: {origin['git_dirty']}, and the "
            "gate promotes clean commits only; commit, or set provenance.allow_dirty_code in the gate"
        )


def _key_problems(rules: ProvenanceRules) -> Iterator[str]:
    from understudy.platform.lineage import signing

    try:
        key, trusted = signing.signing_key(), signing.trusted_keys()
    except UnderstudyError as error:
        yield f"promotion: {error}"
        return
    if not rules.require_signature:
        return
    if key is None or not trusted:
        missing = " and ".join(
            name for name, given in ((signing.SIGNING_KEY, key), (signing.TRUSTED_KEYS, trusted)) if not given
        )
        yield f"promotion: the gate requires a signature, and {missing} is not set; docs/promotion.md makes a key"
    elif signing.key_id(key.public_key()) not in [signing.key_id(item) for item in trusted]:
        yield f"promotion: the key of {signing.SIGNING_KEY} is not among those of {signing.TRUSTED_KEYS}"


def _deployment_problems(promotion: PromotionConfig, scratch: Path, here: bool) -> Iterator[str]:
    from understudy.platform.promotion.gitops import open_or_clone

    store = where.storage_uri() or ""
    if not store.startswith("s3://"):
        yield (
            f"promotion.gitops deploys to a cluster, which cannot read weights in {store or 'the working directory'}; "
            "set storage.uri=s3://…, or promotion.gitops=null"
        )
    if here:
        try:
            open_or_clone(promotion, scratch / "gitops").read()
        except UnderstudyError as error:
            yield f"promotion: {error}"
