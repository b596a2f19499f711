"""From a trained generator to coloured files: Colorizer, checkpoints, exporters, pipeline over many files.

It imports `models`, `imaging`, `runtime` and `config` alone, so that it can be shipped without the rest.
"""
