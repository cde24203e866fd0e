"""sharpaudit: which prompts make a text-to-image diffusion model reproduce its training images."""

__version__ = "0.1.0"
