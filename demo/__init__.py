"""The demo model and its sample documents; nothing in app/ imports this package."""
