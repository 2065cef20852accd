"""What operators do beside serving: doctor, backups, cost, the quality gate."""
