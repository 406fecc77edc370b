"""What ``tests/recorded.py`` records: files that cases use, the cases, and results as JSON."""
