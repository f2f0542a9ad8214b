"""Bar 1: a policy too small for a multi-modal expert of known distribution; everything learned, measured exactly."""
