"""rights

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('matters',
    sa.Column('label', sa.String(length=64), nullable=False),
    sa.Column('name', sa.String(length=200), nullable=False),
    sa.Column('description', sa.String(length=2000), nullable=False),
    sa.Column('parent_id', sa.Uuid(), nullable=True),
    sa.Column('closed_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['parent_id'], ['matters.id'], name=op.f('fk_matters_parent_id_matters')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_matters_tenant_id_tenants'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_matters')),
    sa.UniqueConstraint('tenant_id', 'label', name=op.f('uq_matters_tenant_id_label'))
    )
    with op.batch_alter_table('matters', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_matters_parent_id'), ['parent_id'], unique=False)
        batch_op.create_index(batch_op.f('ix_matters_tenant_id'), ['tenant_id'], unique=False)

    op.create_table('matter_members',
    sa.Column('matter_id', sa.Uuid(), nullable=False),
    sa.Column('user_id', sa.Uuid(), nullable=False),
    sa.Column('access', sa.String(length=5), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['matter_id'], ['matters.id'], name=op.f('fk_matter_members_matter_id_matters'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_matter_members_tenant_id_tenants'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_matter_members_user_id_users'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_matter_members')),
    sa.UniqueConstraint('matter_id', 'user_id', name=op.f('uq_matter_members_matter_id_user_id'))
    )
    with op.batch_alter_table('matter_members', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_matter_members_tenant_id'), ['tenant_id'], unique=False)
        batch_op.create_index(batch_op.f('ix_matter_members_user_id'), ['user_id'], unique=False)


def downgrade() -> None:
    with op.batch_alter_table('matter_members', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_matter_members_user_id'))
        batch_op.drop_index(batch_op.f('ix_matter_members_tenant_id'))
    op.drop_table('matter_members')
    with op.batch_alter_table('matters', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_matters_tenant_id'))
        batch_op.drop_index(batch_op.f('ix_matters_parent_id'))
    op.drop_table('matters')
