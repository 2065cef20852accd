"""The `precedent` command; each module holds a group of its commands."""

import click

from app import __version__
from app.cli import documents, evaluation, models, operations, people, quantization, routes, server
from app.cli.base import Group


@click.group(cls=Group)
@click.version_option(__version__)
def main() -> None:
    """Precedent: AI gateway, legal RAG and inference engine."""


COMMANDS: tuple[click.Command, ...] = (
    server.serve, server.worker, server.migrate_command, server.settings, server.demo, server.secret_key,
    documents.ask_command, documents.ingest_command, documents.index, documents.forget,
    people.tenant, people.key, people.user, people.audit_group,
    evaluation.evaluate, models.model, quantization.quantize, operations.load, operations.doctor, operations.backup,
    operations.restore, operations.cost, routes.route,
)  # fmt: skip
for command in COMMANDS:
    main.add_command(command)
