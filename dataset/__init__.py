"""Which pictures a data set holds, where they lie, and what is done to a network's input.

It imports `imaging` and what is below.
"""
