"""Descriptors of pictures: versioned profiles, so that vectors of different making never meet."""
