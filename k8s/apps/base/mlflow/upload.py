"""Upload one file to object storage under today's name, with its digest, without ever overwriting.

Use: python3 upload.py FILE s3://bucket/prefix
"""

from __future__ import annotations

import datetime
import hashlib
import os
import sys
from pathlib import Path


def main(path: Path, destination: str) -> str:
    """Upload `path` and return its URI; the object carries its sha256 as metadata and as checksum."""
    import boto3
    from botocore.config import Config

    bucket, _, prefix = destination.removeprefix("s3://").partition("/")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    now = datetime.datetime.now(datetime.UTC)
    key = f"{prefix}/{now:%Y/%m/%d}/mlflow-{now:%H%M%S}-{digest[:12]}.dump"
    style = "path" if os.environ.get("AWS_ENDPOINT_URL") else "auto"
    client = boto3.client("s3", config=Config(s3={"addressing_style": style}, retries={"total_max_attempts": 5}))
    with path.open("rb") as stream:
        client.put_object(
            Bucket=bucket,
            Key=key,
            Body=stream,
            Metadata={"sha256": digest},
            ChecksumAlgorithm="SHA256",
            IfNoneMatch="*",
        )
    size = client.head_object(Bucket=bucket, Key=key)["ContentLength"]
    if size != path.stat().st_size:
        raise SystemExit(f"{key} has {size} bytes, the dump has {path.stat().st_size}; the backup is not usable")
    return f"s3://{bucket}/{key}"


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), sys.argv[2]))
