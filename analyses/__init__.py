"""Studies: one file each, run as ``python -m analyses.NAME`` from a checkout, built on the public library."""

import os

# torch's threads wait by spinning, which where anything else runs makes a descent two to four times slower; it has to
# be said before torch is loaded, and a setting of the user's own comes first
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
