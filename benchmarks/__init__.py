"""The speed of bbdm, compared with other systems in the same run: pytest benchmarks/ --benchmark-only."""
