"""Real demonstrations: every baseline and every divergence, over seeds, by the library's own trainers."""
