"""Autoencoders: stacks, training, bundles, the registry and the scorers."""
