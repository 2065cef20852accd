"""Speculation: tokens guessed ahead, verified by the target in one ordinary step. Lossless, see speculator.py."""
