"""Providers: one class per kind of upstream, each speaking its dialect behind one interface."""
