"""OpenMP's wait policy, set before torch is imported, when OpenMP reads it.

By default threads that wait for work spin. Beside any other load they take the cores from those that work: on a busy machine
commands were 9 to 45 times slower.
"""

import os
import sys

if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
