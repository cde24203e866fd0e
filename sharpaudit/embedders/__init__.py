"""Descriptors of pictures: versioned, so that vectors of different making never meet."""
