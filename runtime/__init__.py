"""What every stage needs: run folder, atomic files, device, weight files, the command line.

`device` and `weights` import torch, the others only where a function needs it.
"""
