"""Precedent: AI gateway, legal RAG and inference engine in one application."""

__version__ = "0.1.0"
