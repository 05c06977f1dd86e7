"""Benchmarks: `python run.py bench [NAME]` runs them and rewrites their sections of RESULTS.md."""
