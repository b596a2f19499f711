"""Pixels and files: colour spaces, image files of any kind and depth, their metadata.

May be imported by everything above `runtime`.
"""
