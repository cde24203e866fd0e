"""Models behind one contract: noisy latent and prompt in, estimate of the clean latent out."""
