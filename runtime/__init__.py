"""What every stage needs: run folder, atomic files, device, weight files, the command line.

It imports `config` alone, and torch only where a function needs it.
"""
