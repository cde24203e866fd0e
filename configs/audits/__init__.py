"""The example configs, which ship inside the package as `pipelines.examples`."""
