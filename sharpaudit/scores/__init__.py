"""First-step detection: what one denoising step tells about memorisation."""
