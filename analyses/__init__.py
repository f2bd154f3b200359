"""Studies: one file each, run as ``python -m analyses.NAME`` from a checkout, built on the public library."""

from featmap.cli.entry import limit_thread_spinning

limit_thread_spinning()
