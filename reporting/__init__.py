"""What people look at after a run: report.html, curves, and sentences about scores.

It imports `evaluation` and what is below.
"""
