"""Stable Diffusion 1 and 2: a diffusers folder, from its files to the network."""
