"""Families of models: how a folder becomes a denoiser, one module a family."""
