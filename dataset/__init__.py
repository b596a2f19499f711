"""Data sets: folders, archives, torchvision's sets and the demo; splits and pairs; degradations of the input.

May import `imaging` and the layers below it.
"""
