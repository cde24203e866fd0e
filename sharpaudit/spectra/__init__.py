"""Eigenvalues of the Hessians of a model's learned log density."""
