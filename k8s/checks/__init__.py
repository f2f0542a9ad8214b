"""Checks of the rendered cluster state, without a cluster: schemas, references, policies."""
