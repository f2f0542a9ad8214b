"""Where a model comes from: written at registration, walked and recomputed by whoever doubts it."""
