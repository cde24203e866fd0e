"""Benches: what the project claims of itself, measured by one command each."""
