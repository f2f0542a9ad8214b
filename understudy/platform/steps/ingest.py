"""Step ingest: demonstrations in, one DVC-versioned dataset out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.config import DataConfig, validate
from understudy.data.ingest import Ingested, empty_splits, ingest
from understudy.data.sources import Listing, list_sources
from understudy.data.summary import Summary, write_summary
from understudy.errors import ConfigError, DataRefused
from understudy.platform.datasets import (
    default_remote,
    materialise,
    parent_of,
    publish,
    refuse_braces,
    write_record,
)
from understudy.platform.workdir import prepare
from understudy.records import DatasetRef

if TYPE_CHECKING:
    from understudy.platform.context import StepContext


@dataclasses.dataclass(frozen=True)
class IngestResult:
    """What `understudy data ingest` shows: the record, the summary, the quarantine file and the local folder."""

    ref: DatasetRef
    summary: Summary
    quarantine: Path
    folder: Path
    num_uploaded: int


def run(config: Mapping[str, Any]) -> DatasetRef:
    """Ingest for a pipeline: `config` is `{"code_sha256", "source_sha256", "data": {…}}`.

    Raises:
        DataRefused: also when a split that later steps need would be empty.
        ConfigError: the source does not exist or the section is wrong.
        ServiceUnreachable: object storage does not answer.
    """
    from understudy.platform.context import step_context

    with step_context("ingest", config) as context:
        data = validate(DataConfig, config["data"], where="data")
        digest = str(config.get("source_sha256") or "")
        return finish(context, ingest_source(data, context.workdir, digest, refuse_empty=True))


def finish(context: StepContext, result: IngestResult) -> DatasetRef:
    """Say what the step found and made."""
    context.tracker.log(0, metrics(result.summary))
    for warning in result.summary.warnings:
        context.note(warning)
    context.finish(result.ref)
    return result.ref


def ingest_source(
    config: DataConfig,
    workdir: Path,
    digest: str = "",
    remote: str | None = None,
    refuse_empty: bool = False,
    shards: int = 1,
) -> IngestResult:
    """Ingest one source into a published version and remember it as the working directory's current one.

    Args:
        config: source, limits and splits.
        workdir: where everything is written.
        digest: digest of the source, worked out here when empty.
        remote: DVC remote, by default UNDERSTUDY_DVC_REMOTE or a folder in the working directory.
        refuse_empty: refuse, rather than warn of, a train, validation or test split without rows.
        shards: processes that read the source, at most one a file or MiB of it.
    """
    from understudy.platform.steps.ingest_shards import ingest_in_processes

    workdir = workdir.absolute()
    refuse_braces(workdir, remote or default_remote(workdir))  # now, not after a long read
    listing = list_any(config.source)
    prepare(workdir)
    digest = digest or source_sha256(config.source)
    made = ingest(listing, config, workdir) if shards == 1 else ingest_in_processes(listing, config, workdir, shards)
    with made as ingested:
        return publish_ingested(ingested, config, workdir, digest, remote, refuse_empty)


def publish_ingested(
    ingested: Ingested,
    config: DataConfig,
    workdir: Path,
    digest: str,
    remote: str | None = None,
    refuse_empty: bool = False,
) -> IngestResult:
    """Publish what was ingested and remember it as the current version; the arguments are those of `ingest_source`."""
    summary = ingested.summary
    if refuse_empty and (empty := empty_splits(config, summary)):
        raise DataRefused(" ".join(empty))
    published = publish(ingested.folder, workdir, remote or default_remote(workdir))
    ref = DatasetRef(
        uri=published.uri,
        md5=published.md5,
        rows=summary.rows,
        splits=summary.splits,
        num_bytes=published.num_bytes,
        num_files=published.num_files,
        source=config.source,
        source_sha256=digest,
        parent=parent_of(published.md5, workdir),
    )
    folder = materialise(ref, workdir)
    write_record(ref, workdir)
    write_summary(summary, ref.md5, workdir)
    return IngestResult(ref, summary, ingested.quarantine, folder, published.num_uploaded)


def list_any(source: str) -> Listing:
    """List a local or an `s3://` source."""
    if source.startswith("s3://"):
        from understudy.platform.s3_sources import list_s3_sources

        return list_s3_sources(source)
    if "://" in source:
        raise ConfigError(f"The source {source!r} has a scheme that is not supported. Use a local path or s3://….")
    return list_sources(source)


def source_sha256(source: str) -> str:
    """Digest of a source for cache keys: names and content of its files; keys, sizes and ETags in a bucket."""
    if source.startswith("s3://"):
        from understudy.platform.s3_sources import s3_source_sha256

        return s3_source_sha256(source)
    total = hashlib.sha256()
    root = Path(source).expanduser()
    for file in list_any(source).files:
        with file.open() as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        name = Path(file.name).name if root.is_file() else str(Path(file.name).relative_to(root))
        total.update(f"{content}  {name}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def metrics(summary: Summary) -> dict[str, float]:
    """Return the summary's numbers as metrics for the tracker."""
    counts = {
        "rows_in": summary.rows_in,
        "rows": summary.rows,
        "bad": summary.bad,
        "duplicates_exact": summary.duplicates_exact,
        "duplicates_near": summary.duplicates_near,
        "words_prompt": summary.words["prompt"],
        "words_response": summary.words["response"],
    }
    counts |= {f"rows_{split}": count for split, count in summary.splits.items()}
    return {name: float(value) for name, value in counts.items()}
