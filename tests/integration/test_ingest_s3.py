"""Demonstrations read from a bucket and versions kept in one, against a real S3 server."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import boto3
import pyarrow
import pyarrow.parquet
import pytest

from understudy.config import DataConfig
from understudy.errors import ConfigError, IntegrityError, ServiceUnreachable
from understudy.platform import datasets, s3_sources
from understudy.platform.steps import ingest as step

pytestmark = pytest.mark.integration

ROWS = [{"prompt": f"p{index}", "response": f"r{index}"} for index in range(90)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def config(source: str) -> DataConfig:
    return DataConfig(
        source=source,
        max_prompt_chars=100,
        max_response_chars=100,
        max_bad_fraction=0.05,
        near_duplicate_threshold=None,
        splits={"validation": 0.1, "test": 0.1},  # type: ignore[arg-type]
        unicode_form="keep",
    )


@pytest.fixture
def filled(s3_bucket: str) -> str:
    """The rows over three kinds of files, beside a key that only begins alike."""
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[60:]), table)
    objects = {
        "data/a.jsonl": jsonl(ROWS[:30]),
        "data/b.jsonl.gz": gzip.compress(jsonl(ROWS[30:60])),
        "data/c.parquet": table.getvalue(),
        "data/README.md": b"about",
        "database.jsonl": b"broken",
    }
    for key, body in objects.items():
        boto3.client("s3").put_object(Bucket=s3_bucket, Key=key, Body=body)
    return s3_bucket


def test_a_prefix_gives_the_version_that_one_local_file_gives(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_sources, "_RANGE_BYTES", 500)
    remote = f"s3://{filled}/dvc"
    (tmp_path / "one.jsonl").write_bytes(jsonl(ROWS))
    local = step.ingest_source(config(str(tmp_path / "one.jsonl")), tmp_path / "a", remote=remote)
    stored = step.ingest_source(config(f"s3://{filled}/data"), tmp_path / "b", remote=remote)
    assert stored.summary.ignored_files == ["data/README.md"]
    assert (stored.ref.md5, stored.ref.uri, stored.ref.rows) == (local.ref.md5, local.ref.uri, 90)
    assert (local.num_uploaded, stored.num_uploaded) == (5, 0)
    assert datasets.verify(stored.ref, tmp_path / "c") == stored.ref.splits


def test_what_does_not_exist_is_named(filled: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"Nothing is stored at s3://{filled}/nothing"):
        step.list_any(f"s3://{filled}/nothing")
    with pytest.raises(ConfigError, match="s3://no-such-bucket/x does not exist"):
        step.list_any("s3://no-such-bucket/x")
    (tmp_path / "one.jsonl").write_bytes(jsonl(ROWS))
    with pytest.raises(ServiceUnreachable, match="s3://no-such-bucket/dvc"):
        step.ingest_source(config(str(tmp_path / "one.jsonl")), tmp_path / "w", remote="s3://no-such-bucket/dvc")


def test_digest_and_reading_notice_a_changed_object(filled: str) -> None:
    uri = f"s3://{filled}/data"
    before = step.source_sha256(uri)
    (first, *_) = step.list_any(uri).files
    boto3.client("s3").put_object(Bucket=filled, Key="data/a.jsonl", Body=jsonl(ROWS[:29] + ROWS[:1]))
    assert step.source_sha256(uri) != before
    with pytest.raises(IntegrityError, match="a.jsonl changed while it was read"):
        first.open().read(10)
