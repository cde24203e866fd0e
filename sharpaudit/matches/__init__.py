"""Samples against training pictures: the reference index, exact search, and the bands of a match."""
