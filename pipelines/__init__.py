"""The DAG, compiled and run from one definition."""
