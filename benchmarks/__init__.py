"""Benchmarks import the application and are never imported by it."""

import os

# As app.engine does, but before any benchmark imports torch; contenders in the same run get the same.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
