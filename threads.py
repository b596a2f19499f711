"""How torch's threads wait for one another; the stages import this before torch, or it would come too late.

Left alone, a thread of OpenMP's that waits spins on its core. Where another process, or a thread that decodes
pictures, holds that core, all the others wait for it: on two cores, beside one busy process, a picture of
256 px through the demo's generator.ts took 531 ms instead of 21 (bench.py). Asleep they cost nobody anything.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
