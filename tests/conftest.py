"""Settings of the test run that must be made before torch is loaded."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # other work beside the tests would slow them down severalfold
os.environ.setdefault("MPLBACKEND", "Agg")
