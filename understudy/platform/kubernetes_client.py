"""Whom this process is to a Kubernetes cluster."""

from __future__ import annotations

from typing import Any

from understudy.errors import ConfigError


def connect(purpose: str, remedy: str) -> Any:
    """Return an API client by the pod's service account, or outside of a cluster by the kubeconfig.

    Args:
        purpose: what the cluster is wanted for, the first words of the message.
        remedy: what to do where there is none, a sentence.

    Raises:
        ConfigError: there is neither.
    """
    from kubernetes import client, config

    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config()
        except config.ConfigException as error:
            raise ConfigError(
                f"{purpose}: there is neither a pod's service account nor a kubeconfig ({error}). {remedy}"
            ) from error
    return client.ApiClient()
