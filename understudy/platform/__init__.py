"""The only package that talks to MLflow, DVC, KFP, Kubernetes and object storage."""
