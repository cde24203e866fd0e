"""Formats of prompt files, one module for those that are read alike."""
