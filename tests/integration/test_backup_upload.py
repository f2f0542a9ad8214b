"""The backup's uploader, as the CronJob runs it, against a real S3 server."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
SCRIPT = Path(__file__).parents[2] / "k8s" / "apps" / "base" / "mlflow" / "upload.py"


def test_a_dump_arrives_with_its_digest(s3_bucket: str, tmp_path: Path) -> None:
    import boto3
    from botocore.config import Config

    dump = tmp_path / "mlflow.dump"
    dump.write_bytes(os.urandom(100_000))
    bucket = s3_bucket.removeprefix("s3://").partition("/")[0]
    command = [sys.executable, str(SCRIPT), str(dump), f"s3://{bucket}/backups"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip().removeprefix(f"s3://{bucket}/")
    stored = boto3.client("s3", config=Config(s3={"addressing_style": "path"})).get_object(Bucket=bucket, Key=key)
    assert stored["Body"].read() == dump.read_bytes()
    assert stored["Metadata"]["sha256"] == hashlib.sha256(dump.read_bytes()).hexdigest()
    assert key.startswith("backups/2") and key.endswith(".dump")
