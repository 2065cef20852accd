"""Where to: wire formats, routing, providers, fallback, metering."""
