"""Precedent: AI gateway, legal RAG and inference engine in one application."""

import os

# OpenMP's threads spin while they wait; with an event loop and an engine thread on the same cores that makes two
# threads slower than one. The variable is read when torch is first imported, wherever that happens.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
