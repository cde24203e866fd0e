"""Models as tests open them, and the best network that there is for Gaussian pictures."""

from __future__ import annotations

import torch

from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionDenoiser

CPU = torch.device("cpu")


def whiten(x, a, sigma, mean_D, covariance_DD):
    """(a^2 S + sigma^2 I)^-1 (x - a m), with shape (D, B): the score is its negative."""
    noisy_DD = a**2 * covariance_DD + sigma**2 * torch.eye(len(mean_D), dtype=torch.float64)
    return torch.linalg.solve(noisy_DD, x.double().flatten(1).T - a * mean_D[:, None])


def model_at(path, **options):
    return ModelConfig(path=str(path), **({"device": "cpu", "dtype": "float32"} | options))


def open_model(folder, dtype=torch.float32):
    return DiffusionDenoiser(folder, CPU, dtype)


class OptimalNetwork(torch.nn.Module):
    """The best network there is for pictures from N(m, S): E[eps | x] or E[v | x]."""

    def __init__(self, mean_D, covariance_DD, alphas_cumprod, prediction_type):
        super().__init__()
        self.mean_D, self.covariance_DD, self.prediction_type = mean_D, covariance_DD, prediction_type
        self.alphas_cumprod = alphas_cumprod

    def forward(self, x, t, encoder_hidden_states, return_dict):
        a = self.alphas_cumprod[t].double().sqrt()
        sigma = (1 - self.alphas_cumprod[t].double()).sqrt()
        white_DB = whiten(x, a, sigma, self.mean_D, self.covariance_DD)
        eps_DB = sigma * white_DB
        x0_DB = self.mean_D[:, None] + a * self.covariance_DD @ white_DB
        output_DB = eps_DB if self.prediction_type == "epsilon" else a * eps_DB - sigma * x0_DB
        return (output_DB.T.reshape(x.shape).float(),)
