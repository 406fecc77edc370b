"""How fast bbdm is, beside other systems in the same run: pytest benchmarks/ --benchmark-only."""
