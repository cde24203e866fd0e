"""Nearest-neighbour search over descriptors; the only place that imports faiss."""
