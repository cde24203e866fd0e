"""A flow model whose velocity is known in closed form: the analytic model's distribution on straight paths."""

from __future__ import annotations

import torch

from sharpaudit.denoisers.base import NoiseLevel, Prediction
from sharpaudit.denoisers.families.gaussian.model import GaussianDenoiser, GaussianSpec, Mixture, Planted
from sharpaudit.denoisers.schedule import flow_level, flow_time


class FlowModel(GaussianDenoiser):
    """x = (1 - t) x0 + t eps and the network gives E[eps - x0 | x]; samples start at t = 1, the screen later."""

    def level(self, t: float) -> NoiseLevel:
        return flow_level(t)

    def timesteps(self, n_steps: int) -> list[float]:
        return [1 - i / n_steps for i in range(n_steps)]

    def first_timestep(self) -> float:
        return flow_time(GaussianDenoiser.level(self, 981))

    def noisiest_timestep(self) -> float:
        return flow_time(GaussianDenoiser.level(self, 999))

    def velocity(self, x_BCHW, t, conditioning):
        """E[eps - x0 | x], float64: (x - x0_hat) / t."""
        x_BD, level = x_BCHW.double().flatten(1), self.level(t)
        x0_BD = Mixture(**conditioning.tensors).x0_hat(x_BD, level)
        return (level.eps(x_BD, x0_BD) - x0_BD).reshape(x_BCHW.shape)

    def predict(self, x_BCHW, t, conditioning, **options) -> Prediction:
        u_BCHW = self.velocity(x_BCHW, t, conditioning)
        return Prediction(self.level(t).x0_hat(x_BCHW.double(), u_BCHW, "velocity").to(torch.float32))


def flow(shares=(), shape=(3, 8, 8)) -> FlowModel:
    """A model with a prompt "planted i" for each share."""
    planted = tuple(Planted(prompt=f"planted {i}", share=share) for i, share in enumerate(shares))
    return FlowModel(GaussianSpec(kind="gaussian", latent_shape=shape, planted=planted))


def degenerate(model: FlowModel) -> FlowModel:
    """The same, screened where its samples start."""
    model.first_timestep = lambda: 1.0  # type: ignore[method-assign]
    return model
