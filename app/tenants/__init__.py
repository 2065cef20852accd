"""Who may: tenants, API keys, scopes and access labels."""
