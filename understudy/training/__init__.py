"""The loops: supervised warm start and the alternating adversarial loop, resumable to the last bit."""
