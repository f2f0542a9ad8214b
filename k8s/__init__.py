"""Cluster state as Kustomize sources, and the tool that checks what they render to (`python3 -m k8s.check`)."""
