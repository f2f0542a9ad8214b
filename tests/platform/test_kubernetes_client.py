"""Whom a process is to a cluster: a pod's account, else the kubeconfig, else a message."""

from __future__ import annotations

import json

import pytest

from understudy.errors import ConfigError
from understudy.platform.kubernetes_client import connect


@pytest.fixture(autouse=True)
def outside_of_a_pod(monkeypatch, tmp_path):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_PORT", raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    return tmp_path / "config"


def test_a_kubeconfig_names_the_server(outside_of_a_pod):
    server = "https://127.0.0.1:6443"
    outside_of_a_pod.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
                "clusters": [{"name": "one", "cluster": {"server": server}}],
                "users": [{"name": "me", "user": {}}],
            }
        )
    )
    assert connect("Nothing to test", "Write one.").configuration.host == server


def test_without_either_the_message_tells_what_for_and_what_to_do():
    with pytest.raises(ConfigError) as refused:
        connect("No Kubernetes to launch on", "Run the step in the cluster, or set KUBECONFIG.")
    words = str(refused.value)
    assert words.startswith("No Kubernetes to launch on: there is neither a pod's service account nor a kubeconfig (")
    assert words.endswith("). Run the step in the cluster, or set KUBECONFIG.")
