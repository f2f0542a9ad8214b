"""Which path of `kfp_api` does what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support import kfp_pipelines, kfp_recurring, kfp_runs
from support.kfp_rows import Request

if TYPE_CHECKING:
    from support.kfp_api import KfpApi, Row


def healthz(api: KfpApi, _: Request) -> Row:
    return {"commit_sha": "stub", "tag_name": "2.17.0", "multi_user": api.multi_user, "pipeline_store": "kubernetes"}


V2 = "/apis/v2beta1"
ID = "([^/:]+)"
ROUTES = [
    ("GET", f"{V2}/healthz", healthz),
    ("GET", f"{V2}/experiments", kfp_pipelines.list_experiments),
    ("POST", f"{V2}/experiments", kfp_pipelines.create_experiment),
    ("GET", f"{V2}/experiments/{ID}", kfp_pipelines.get_experiment),
    ("GET", f"{V2}/pipelines", kfp_pipelines.list_pipelines),
    ("POST", f"{V2}/pipelines/upload", kfp_pipelines.upload_pipeline),
    ("POST", f"{V2}/pipelines/upload_version", kfp_pipelines.upload_version),
    ("GET", f"{V2}/pipelines/names/{ID}", kfp_pipelines.get_pipeline_by_name),
    ("GET", f"{V2}/pipelines/{ID}", kfp_pipelines.get_pipeline),
    ("GET", f"{V2}/pipelines/{ID}/versions", kfp_pipelines.list_versions),
    ("GET", f"{V2}/pipelines/{ID}/versions/{ID}", kfp_pipelines.get_version),
    ("DELETE", f"{V2}/pipelines/{ID}/versions/{ID}", kfp_pipelines.delete_version),
    ("GET", f"{V2}/recurringruns", kfp_recurring.list_jobs),
    ("POST", f"{V2}/recurringruns", kfp_recurring.create_job),
    ("GET", f"{V2}/recurringruns/{ID}", kfp_recurring.get_job),
    ("DELETE", f"{V2}/recurringruns/{ID}", kfp_recurring.delete_job),
    ("POST", f"{V2}/recurringruns/{ID}:enable", kfp_recurring.enable_job),
    ("POST", f"{V2}/recurringruns/{ID}:disable", kfp_recurring.disable_job),
    ("GET", f"{V2}/runs", kfp_runs.list_runs),
    ("POST", f"{V2}/runs", kfp_runs.post_run),
    ("GET", f"{V2}/runs/{ID}", kfp_runs.get_run),
    ("DELETE", f"{V2}/runs/{ID}", kfp_runs.delete_run),
    ("POST", f"{V2}/runs/{ID}:terminate", kfp_runs.terminate_run),
    ("GET", f"{V2}/runs/{ID}/nodes/{ID}/artifacts/{ID}:read", kfp_runs.read_artifact),
    ("GET", f"/apis/v1alpha1/runs/{ID}/nodes/{ID}/log", kfp_runs.read_log),
]
