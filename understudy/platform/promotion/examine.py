"""The evidence for a promotion: the walk, the refusals, the gate's verdict; what the decision record keeps of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.errors import ConfigError, GateRefused
from understudy.platform.datasets import materialise
from understudy.platform.lineage.artifacts import StoredArtifacts
from understudy.platform.lineage.record import Lineage, read_lineage
from understudy.platform.lineage.walk import Walked, walk
from understudy.platform.promotion.change import Candidate
from understudy.platform.promotion.decisions import State
from understudy.platform.promotion.refusals import Champion, Surroundings, refusals, refuse
from understudy.platform.storage import open_store
from understudy.platform.workdir import scratch_folder

if TYPE_CHECKING:
    from understudy.evaluation.gate.schema import Gate
    from understudy.platform.registry import Registry, Version


SAME_WEIGHTS, NOT_DECIDED = "same_weights", "not_decided"


class VerdictRefused(GateRefused):
    """Nothing forbids the version, and its numbers do not promote it; `--approve` may.

    `verdict` is the gate's, "not_decided" where it leaves the first champion to a person, or "same_weights".
    """

    def __init__(self, message: str, verdict: str, more_prompts: int | None = None) -> None:
        super().__init__(message)
        self.verdict, self.more_prompts = verdict, more_prompts


@dataclass(frozen=True)
class Examination:
    """How a version is examined.

    Attributes:
        registry: where versions are.
        gate_file: the reviewed gate.
        approved: a person's reason, None for the gate alone. It can stand in for the verdict, never for a refusal.
        storage_uri: the store, None for the working directory's.
    """

    registry: Registry
    gate_file: Path
    approved: str | None
    storage_uri: str | None

    def candidate(self, version: Version, deployed: bool) -> Candidate:
        """Return the version as something to promote.

        Raises:
            ConfigError: it would be deployed, and its weights are in no bucket.
        """
        uri = version.tags.get("weights_uri", "")
        if deployed and not uri.startswith("s3://"):
            raise ConfigError(
                f"The weights of {version.name}/{version.version} are at {uri!r}, which a cluster cannot read. Train "
                "with storage.uri=s3://…, or promote without --gitops."
            )
        return Candidate(version.name, version.version, uri)

    def examine(self, version: Version, before: State) -> dict[str, Any]:
        """Return the evidence for a version against the state under the lease.

        Raises:
            VerdictRefused: with the gate's verdict and numbers.
            GateRefused: with every refusal, or because the gate asks for what was not measured.
            ConfigError: the gate file is wrong.
        """
        from understudy.evaluation.gate import load_gate

        gate = load_gate(self.gate_file)
        name = f"{version.name}/{version.version}"
        with walked_version(self.registry, version, self.storage_uri) as (walked, scratch):
            champion = self._champion(version, before)
            surroundings = Surroundings(lambda ref: materialise(ref, scratch), self._lineage_of(version.name))
            is_champion = before.champion == version.version
            same = champion is not None and champion.weights_sha256 == version.tags.get("weights_sha256")
            found = refusals(walked, champion, gate.provenance, surroundings)
            refuse(name, [item for item in found if not (same and item.kind == "champion")])
            if same and champion is not None and not is_champion:
                raise VerdictRefused(
                    f"{name} has the weights of the champion, version {champion.version}: there is nothing to decide. "
                    "Nothing was changed.",
                    SAME_WEIGHTS,
                )
            decision = (
                {"verdict": "champion", "headline": "It is the champion already."}
                if is_champion
                else self._verdict(gate, walked, champion is not None, name)
            )
        keys = ("weights_sha256", "registered_sha256", "lineage_sha256", "report_sha256", "dataset_md5", "git_commit")
        return {
            **{key: version.tags[key] for key in keys if key in version.tags},
            "signed_by": walked.signed_by,
            "gate_sha256": hashlib.sha256(self.gate_file.read_bytes()).hexdigest(),
            "verdict": decision["verdict"],
            "decision": decision,
            "approved_by_person": self.approved is not None,
        }

    def _verdict(self, gate: Gate, walked: Walked, has_champion: bool, name: str) -> dict[str, Any]:
        from understudy.evaluation.gate import decide
        from understudy.evaluation.names import CHAMPION

        assert walked.lineage is not None and walked.report is not None
        policies = walked.lineage.report["policies"]
        sha256 = walked.lineage.chain[0].sha256
        challenger = next(policy for policy, digest in policies.items() if digest == sha256 and policy != CHAMPION)
        try:
            decision = decide(gate, walked.report, challenger, CHAMPION if has_champion else None)
        except GateRefused as error:
            if self.approved is None and not has_champion and gate.no_champion == "refuse":
                raise VerdictRefused(f"{name} is not promoted: {error}", NOT_DECIDED) from error
            if self.approved is None:
                raise
            return {"verdict": NOT_DECIDED, "headline": str(error)}
        if not decision.accepts and self.approved is None:
            raise VerdictRefused(
                f"{name} is not promoted: the gate's verdict is {decision.verdict.replace('_', ' ')}.\n"
                f"{_rules(decision)}\nNothing was changed. A person may decide otherwise with --approve REASON.",
                decision.verdict,
                decision.more_prompts,
            )
        return decision.to_json()

    def _champion(self, version: Version, before: State) -> Champion | None:
        if before.champion is None:
            return None
        champion = self.registry.find(f"{version.name}/{before.champion}")
        return Champion(champion.version, champion.tags.get("weights_sha256", "unknown"))

    def _lineage_of(self, name: str) -> Any:
        def found(weights_sha256: str) -> Lineage | None:
            for version in self.registry.versions():
                tags = version.tags
                if tags.get("weights_sha256") == weights_sha256 and "lineage_sha256" in tags:
                    store = open_store(self.storage_uri, self.registry.workdir)
                    return read_lineage(store.fetch(tags["lineage_uri"], tags["lineage_sha256"]))
            return None

        return found


@contextmanager
def walked_version(registry: Registry, version: Version, storage_uri: str | None) -> Iterator[tuple[Walked, Path]]:
    """Walk a version in its stores, in a scratch folder that holds what had to be brought here."""
    with stored_artifacts(registry, version, storage_uri) as artifacts:
        yield walk(artifacts), artifacts.scratch


@contextmanager
def stored_artifacts(registry: Registry, version: Version, storage_uri: str | None) -> Iterator[StoredArtifacts]:
    """Give the version's artifacts as they lie in their stores."""
    with scratch_folder(registry.workdir) as scratch:
        yield StoredArtifacts(registry, version, storage_uri, scratch)


def _rules(decision: Any) -> str:
    words = [getattr(rule, "text", None) or str(rule) for rule in decision.rules]
    return "\n".join(f"  - {word}" for word in words)
