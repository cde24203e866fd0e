"""The analytic model: a Gaussian mixture whose every quantity is known in closed form."""
