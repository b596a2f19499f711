"""The GAN, the training loop, and how a run is set up.

It imports `data`, `inference`, `models` and what is below.
"""
