"""Which models, samplers, schedulers and other nodes the pack's techniques work with: measured, and written down.

`python run.py matrix` rewrites docs/compatibility.md; tests/real_host/test_companions.py uses the same techniques.
"""
