"""A registered model and what it was trained on, behind the numbers that drift is looked for in.

The reference is held out: validation and test split of the model's own dataset version. Of the training split the
model remembers too much; its perplexity there is no standard for rows that it has not seen.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.data.demonstrations import Demonstration
from understudy.data.rows import Limits, RowProblem, parse_line, validate_row
from understudy.errors import DataRefused, IntegrityError, UnencodableText
from understudy.records import DatasetRef

if TYPE_CHECKING:
    from understudy.evaluation.drift import Reference
    from understudy.evaluation.intervals import Floats
    from understudy.models.discriminator import Discriminator
    from understudy.models.language_model import LanguageModel
    from understudy.platform.registry import Registry, Version
    from understudy.platform.storage import Store

PROMPT_LENGTH, RESPONSE_LENGTH = "prompt length", "response length"
PERPLEXITY, DISCRIMINATOR = "perplexity", "discriminator score"
MAX_REFERENCE_ROWS = 1000
MAX_LINE_BYTES = 1_000_000
HEAD_ROWS = 32
_LIMITS = Limits(max_prompt_chars=MAX_LINE_BYTES, max_response_chars=MAX_LINE_BYTES)


@dataclass
class Scorer:
    """Numbers of rows under one model.

    Attributes:
        policy: the model.
        head: the discriminator that its run kept, if any.
        of_tokens: whether that judges tokens; else whole responses.
        trained: digests of the rows that the model was trained on, which it remembers.
        notes: what a reader must know.
        num_remembered: rows scored so far that were such rows.
        num_unencodable: rows so far that the model cannot be given, of which nothing is compared.
    """

    policy: LanguageModel
    head: Discriminator | None
    of_tokens: bool
    trained: frozenset[bytes]
    notes: list[str]
    num_remembered: int = 0
    num_unencodable: int = 0

    def scores(self, rows: Sequence[Demonstration]) -> dict[str, Floats]:
        """Return per metric one value a row.

        Perplexity and discriminator are NaN where a row is longer than the context, or was trained on word by word;
        all are where the model cannot be given its text.
        """
        import numpy as np

        pairs = [_ids(self.policy, row) for row in rows]
        remembered = [row_digest(row) in self.trained for row in rows]
        self.num_remembered += sum(remembered)
        self.num_unencodable += pairs.count(None)
        fits = {
            index: pair
            for index, pair in enumerate(pairs)
            if pair and sum(map(len, pair)) <= self.policy.context_tokens and not remembered[index]
        }
        chosen = list(fits)
        found = {
            PROMPT_LENGTH: np.asarray([float(len(pair[0])) if pair else math.nan for pair in pairs]),
            RESPONSE_LENGTH: np.asarray([float(len(pair[1])) if pair else math.nan for pair in pairs]),
            PERPLEXITY: np.full(len(rows), math.nan),
        }
        if fits:
            from understudy.evaluation.policies import LoadedPolicies

            models = LoadedPolicies(lambda name: self.policy, 1)
            sums, counts = models.expert_logps("watched", [rows[index] for index in chosen])
            found[PERPLEXITY][chosen] = np.exp(np.minimum(-sums / counts, 700.0))
        if self.head is not None:
            found[DISCRIMINATOR] = np.full(len(rows), math.nan)
            found[DISCRIMINATOR][chosen] = self._logits(list(fits.values()))
        return found

    def _logits(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Return `logits_expert_high` of each pair: at the last token, or the mean over the response's tokens."""
        import torch

        assert self.head is not None
        logits: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(pairs), HEAD_ROWS):
                batch = self.policy.batch(*zip(*pairs[start : start + HEAD_ROWS], strict=True))
                output_BT = self.head(batch)[..., 0]
                counts_B = batch.mask_BT.sum(-1)
                if self.of_tokens:
                    logits += ((output_BT * batch.mask_BT).sum(-1) / counts_B).tolist()
                else:
                    logits += output_BT.gather(-1, counts_B[:, None] - 1)[:, 0].tolist()
        return logits


@dataclass(frozen=True)
class Watched:
    """A model to watch."""

    name: str
    version: str
    scorer: Scorer
    reference: Reference
    num_reference: int
    against: str
    dataset_md5: str


def load_watched(registry: Registry, version: Version, storage_uri: str | None, against: str, seed: int) -> Watched:
    """Load a registered version, its discriminator and its reference rows.

    Args:
        registry: where the version is.
        version: which one.
        storage_uri: the object store; None: the working directory's.
        against: "demonstrations", or "samples": the model's own responses to the same prompts.
        seed: of the choice of reference rows and of sampling.

    Raises:
        IntegrityError: the version has no lineage, or stored content differs from its digest.
        DataRefused: there are too few held-out rows to compare with.
    """
    from understudy.evaluation.drift import MIN_ROWS, Reference, group_numbers
    from understudy.models.devices import resolve_device
    from understudy.models.loading import load_policy
    from understudy.platform.lineage.record import read_lineage
    from understudy.platform.storage import open_store

    _silence_loading()
    needed = [f"{kind}_{part}" for kind in ("weights", "lineage", "report") for part in ("uri", "sha256")]
    missing = [tag for tag in needed if tag not in version.tags]
    if missing:
        raise IntegrityError(
            f"{version.name}/{version.version} has no {', '.join(missing)}: it was not registered by this pipeline, so "
            "what it was trained on is not known. Register it with `understudy run`."
        )
    store, tags = open_store(storage_uri, registry.workdir), version.tags
    dataset = read_lineage(store.fetch(tags["lineage_uri"], tags["lineage_sha256"])).dataset
    policy = load_policy(store.fetch(tags["weights_uri"], tags["weights_sha256"]))
    policy.model.to(resolve_device("auto")).eval()
    rows, trained = _held_out(dataset, registry.workdir, seed)
    scorer = _scorer(policy, store, tags, trained)
    if len(rows) < MIN_ROWS:
        raise DataRefused(
            f"Dataset version {dataset.md5} holds {len(rows)} held-out rows, a comparison needs {MIN_ROWS}. "
            "Train on more demonstrations, or with larger validation and test splits."
        )
    if against == "samples":
        rows = _sampled(policy, rows, float(tags.get("temperature") or 1.0), seed)
    reference = Reference(scorer.scores(rows), group_numbers([row.group for row in rows]))
    scorer.num_remembered = scorer.num_unencodable = 0
    return Watched(version.name, version.version, scorer, reference, len(rows), against, dataset.md5)


def parse_row(line: bytes) -> Demonstration:
    """Return one line of a stream as a row; an empty response is one, because models do write nothing.

    Raises:
        RowProblem: why it is none.
    """
    if len(line) > MAX_LINE_BYTES:
        raise RowProblem("too long", f"the line has {len(line)} bytes, the limit is {MAX_LINE_BYTES}")
    content = parse_line(line)
    empty = content.get("response") == ""
    row = validate_row(content | {"response": "-"} if empty else content, _LIMITS)
    response = "" if empty else row.response
    return Demonstration(row.id or "", row.group or "", tuple(row.messages), row.prompt, response)


def _silence_loading() -> None:
    """A bar for weights that load in a second says nothing."""
    from transformers.utils import logging

    untyped: Any = logging
    untyped.disable_progress_bar()


def _ids(policy: LanguageModel, row: Demonstration) -> tuple[list[int], list[int]] | None:
    """Return prompt and response ids, or None where the model cannot be given that text."""
    try:
        return policy.encode_prompt([dict(message) for message in row.messages]), policy.encode_response(row.response)
    except UnencodableText:
        return None


def row_digest(row: Demonstration) -> bytes:
    """Return what tells a row of prompt and response from all others."""
    content = json.dumps([row.messages, row.response], ensure_ascii=True).encode()
    return hashlib.blake2b(content, digest_size=12).digest()


def _scorer(policy: LanguageModel, store: Store, tags: dict[str, str], trained: frozenset[bytes]) -> Scorer:
    """Load the discriminator that the report names beside the policy, where its numbers are comparable alone."""
    from understudy.models.discriminator import load_discriminator

    report = json.loads((store.fetch(tags["report_uri"], tags["report_sha256"]) / "report.json").read_text("utf-8"))
    record = report.get("provenance", {}).get("Records and digests", {}).get("discriminator")
    if not record or record.get("policy_sha256") != tags["weights_sha256"]:
        return Scorer(policy, None, False, trained, ["Its run kept no discriminator, so that score is not watched."])
    uri = f"{tags['weights_uri'].rstrip('/').rpartition('/')[0].rpartition('/')[0]}/discriminator/{record['sha256']}"
    try:
        folder = store.fetch(uri, str(record["sha256"]))
        description: dict[str, Any] = json.loads((folder / "description.json").read_text(encoding="utf-8"))
        head = load_discriminator(folder, policy)
    except (IntegrityError, OSError) as error:
        note = f"Its discriminator cannot be read, so that score is not watched: {error}"
        return Scorer(policy, None, False, trained, [note])
    head.to(policy.device).eval()
    return Scorer(policy, head, description.get("level") == "token", trained, [])


def _held_out(dataset: DatasetRef, workdir: Path, seed: int) -> tuple[list[Demonstration], frozenset[bytes]]:
    """Return held-out rows, and digests of the rows that were trained on."""
    import numpy as np

    from understudy.data.demonstrations import iterate_split, load_split
    from understudy.platform.datasets import materialise

    folder = materialise(dataset, workdir)
    rows = [row for split in ("validation", "test") for row in load_split(folder, split)]
    chosen = np.random.default_rng(seed).permutation(len(rows))[:MAX_REFERENCE_ROWS]
    trained = frozenset(row_digest(row) for row in iterate_split(folder, "train"))
    return [rows[index] for index in sorted(chosen.tolist())], trained


def _sampled(
    policy: LanguageModel, rows: Sequence[Demonstration], temperature: float, seed: int
) -> list[Demonstration]:
    """Return the rows with the model's own responses, as it samples them when it serves."""
    from understudy.evaluation.policies import LoadedPolicies
    from understudy.evaluation.result import Decoding
    from understudy.platform.registry import generation_defaults

    limit = generation_defaults(Path(policy.model.config.name_or_path))["max_new_tokens"]
    room = policy.context_tokens - limit
    pairs = [_ids(policy, row) for row in rows]
    fitting = [row for row, pair in zip(rows, pairs, strict=True) if pair and len(pair[0]) <= room]
    decoding = Decoding("watched", temperature or 1.0, greedy=temperature == 0)
    samples = LoadedPolicies(lambda name: policy, limit).sample("watched", fitting, decoding, seed)
    return [replace(row, response=sample.text) for row, sample in zip(fitting, samples, strict=True)]


def windows_of(rows: Iterator[Demonstration], size: int, min_rows: int) -> Iterator[list[Demonstration]]:
    """Yield full windows, then the rest if it has `min_rows`."""
    window: list[Demonstration] = []
    for row in rows:
        window.append(row)
        if len(window) == size:
            yield window
            window = []
    if len(window) >= min_rows:
        yield window
