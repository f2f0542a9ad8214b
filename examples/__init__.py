"""Demonstration sources: each writes rows of prompt, response and group as JSONL."""
