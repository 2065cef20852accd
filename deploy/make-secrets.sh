#!/usr/bin/env bash
# Writes the secrets that docker-compose.yml names, once: existing ones stay as they are.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
random() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'; }
for name in postgres_password metrics_token grafana_password; do
    [ -s "secrets/$name" ] || random >"secrets/$name"
done
# As `precedent secret-key` makes it: 32 bytes in URL-safe base64, with its padding.
[ -s secrets/encryption_key ] || { random | tr -d '\n'; printf '='; } >secrets/encryption_key
[ -s secrets/database_url ] ||
    printf 'postgresql+asyncpg://precedent:%s@postgres/precedent' "$(cat secrets/postgres_password)" >secrets/database_url
# The containers run as another user.
chmod 644 secrets/*
