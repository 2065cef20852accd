"""money

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op


revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('ledger',
    sa.Column('request_id', sa.Uuid(), nullable=False),
    sa.Column('key_id', sa.Uuid(), nullable=True),
    sa.Column('user_id', sa.Uuid(), nullable=True),
    sa.Column('model', sa.String(length=200), nullable=False),
    sa.Column('target', sa.String(length=100), nullable=False),
    sa.Column('prompt_tokens', sa.Integer(), nullable=False),
    sa.Column('completion_tokens', sa.Integer(), nullable=False),
    sa.Column('cached_tokens', sa.Integer(), nullable=False),
    sa.Column('input_micros', sa.BigInteger(), nullable=False),
    sa.Column('cached_input_micros', sa.BigInteger(), nullable=False),
    sa.Column('output_micros', sa.BigInteger(), nullable=False),
    sa.Column('computing_micros', sa.BigInteger(), nullable=False),
    sa.Column('amount_micros', sa.BigInteger(), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_ledger_tenant_id_tenants'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_ledger')),
    sa.UniqueConstraint('request_id', name=op.f('uq_ledger_request_id'))
    )
    with op.batch_alter_table('ledger', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_ledger_key_id'), ['key_id'], unique=False)
        batch_op.create_index('ix_ledger_tenant_created', ['tenant_id', 'created_at'], unique=False)
        batch_op.create_index(batch_op.f('ix_ledger_tenant_id'), ['tenant_id'], unique=False)
        batch_op.create_index(batch_op.f('ix_ledger_user_id'), ['user_id'], unique=False)

    op.create_table('budgets',
    sa.Column('key_id', sa.Uuid(), nullable=True),
    sa.Column('user_id', sa.Uuid(), nullable=True),
    sa.Column('window', sa.String(length=5), nullable=False),
    sa.Column('limit_micros', sa.BigInteger(), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['key_id'], ['api_keys.id'], name=op.f('fk_budgets_key_id_api_keys'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_budgets_tenant_id_tenants'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_budgets'))
    )
    with op.batch_alter_table('budgets', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_budgets_key_id'), ['key_id'], unique=False)
        batch_op.create_index(batch_op.f('ix_budgets_tenant_id'), ['tenant_id'], unique=False)
        batch_op.create_index(batch_op.f('ix_budgets_user_id'), ['user_id'], unique=False)

    with op.batch_alter_table('api_keys', schema=None) as batch_op:
        batch_op.add_column(sa.Column('requests_per_minute', sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column('tokens_per_minute', sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column('concurrency', sa.Integer(), nullable=True))

    with op.batch_alter_table('requests', schema=None) as batch_op:
        batch_op.add_column(sa.Column('user_id', sa.Uuid(), nullable=True))
        batch_op.add_column(sa.Column('endpoint', sa.String(length=20), server_default='chat', nullable=False))
        batch_op.add_column(sa.Column('streamed', sa.Boolean(), server_default=sa.false(), nullable=False))
        batch_op.add_column(sa.Column('error', sa.String(length=500), nullable=True))
        batch_op.add_column(sa.Column('cost_micros', sa.BigInteger(), server_default='0', nullable=False))
        batch_op.add_column(sa.Column('cache', sa.String(length=10), server_default='', nullable=False))
        batch_op.add_column(sa.Column('routing', sa.JSON(), server_default='{}', nullable=False))
        batch_op.add_column(sa.Column('spans', sa.JSON(), server_default='[]', nullable=False))
        batch_op.alter_column('key_id',
               existing_type=sa.Uuid(),
               nullable=True)
        batch_op.create_index('ix_requests_tenant_created', ['tenant_id', 'created_at'], unique=False)

    with op.batch_alter_table('tenants', schema=None) as batch_op:
        batch_op.add_column(sa.Column('requests_per_minute', sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column('tokens_per_minute', sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column('concurrency', sa.Integer(), nullable=True))



def downgrade() -> None:
    with op.batch_alter_table('tenants', schema=None) as batch_op:
        batch_op.drop_column('concurrency')
        batch_op.drop_column('tokens_per_minute')
        batch_op.drop_column('requests_per_minute')

    with op.batch_alter_table('requests', schema=None) as batch_op:
        batch_op.drop_index('ix_requests_tenant_created')
        batch_op.alter_column('key_id',
               existing_type=sa.Uuid(),
               nullable=False)
        batch_op.drop_column('spans')
        batch_op.drop_column('routing')
        batch_op.drop_column('cache')
        batch_op.drop_column('cost_micros')
        batch_op.drop_column('error')
        batch_op.drop_column('streamed')
        batch_op.drop_column('endpoint')
        batch_op.drop_column('user_id')

    with op.batch_alter_table('api_keys', schema=None) as batch_op:
        batch_op.drop_column('concurrency')
        batch_op.drop_column('tokens_per_minute')
        batch_op.drop_column('requests_per_minute')

    with op.batch_alter_table('budgets', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_budgets_user_id'))
        batch_op.drop_index(batch_op.f('ix_budgets_tenant_id'))
        batch_op.drop_index(batch_op.f('ix_budgets_key_id'))

    op.drop_table('budgets')
    with op.batch_alter_table('ledger', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_ledger_user_id'))
        batch_op.drop_index(batch_op.f('ix_ledger_tenant_id'))
        batch_op.drop_index('ix_ledger_tenant_created')
        batch_op.drop_index(batch_op.f('ix_ledger_key_id'))

    op.drop_table('ledger')
