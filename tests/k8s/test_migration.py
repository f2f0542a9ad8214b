"""The init container that migrates MLflow's database does so, and its command names no secret."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from k8s.checks.pods import templates
from k8s.checks.render import Object


def test_the_database_is_migrated_by_what_stands_in_the_environment(
    rendered: dict[str, list[Object]], tmp_path: Path
) -> None:
    (pod,) = [pod for pod in templates(rendered["production"]) if pod.where.endswith("Deployment/mlflow")]
    (migrate,) = pod.spec["initContainers"]
    python, *arguments = migrate["command"]
    (variable,) = [entry for entry in migrate["env"] if entry["name"] == "MLFLOW_BACKEND_STORE_URI"]
    assert python == "python3" and "secretKeyRef" in variable["valueFrom"]
    assert "$" not in " ".join(migrate["command"])  # no shell and no kubelet puts the URI into the process list
    database = tmp_path / "mlflow.db"
    for _ in range(2):  # an empty database, then one that is up to date
        environment = dict(os.environ, MLFLOW_BACKEND_STORE_URI=f"sqlite:///{database}")
        subprocess.run([sys.executable, *arguments], check=True, env=environment, capture_output=True, timeout=120)
    with sqlite3.connect(database) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {"runs", "registered_models", "alembic_version"} <= tables
