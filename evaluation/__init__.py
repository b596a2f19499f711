"""Metrics, score files with intervals, comparisons, and the classifier that metrics ask.

It imports `data`, `inference`, `models` and what is below; never `training`.
"""
