"""Benchmarks: speed, memory, robustness and images of featmap, measured beside other tools."""
