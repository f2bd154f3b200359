"""Studies: one file each, run as ``python -m analyses.NAME`` from a checkout, built on the public library."""

from featmap.cli.waiting import wait_briefly

wait_briefly()
