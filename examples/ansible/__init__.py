"""Default demonstrations: task name to module call, from the ansible wheel."""
