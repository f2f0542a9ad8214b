"""Debian package descriptions, short to long: open-ended prose."""
