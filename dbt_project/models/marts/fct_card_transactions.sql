{%- set lookup = ['transaction_id', 'transaction_at', 'customer_id', 'terminal_id', 'amount'] -%}
{{
    config(
        incremental_strategy='first_landed',
        indexes=[{'columns': ['landed_date']}],
        meta={
            'source': 'card_transactions',
            'lookup': lookup,
            'nullable': [],
            'changed_keys': ['transaction_id'],
        },
    )
}}
-- depends_on: {{ ref('int_changed_rows') }}

with card_transactions as (
    {{ first_landed(
        'card_transactions', ref('stg_card_transactions'), lookup, [], 'transaction_id'
    ) }}
),

dated as (
    select
        transaction_id,
        transaction_at,
        transaction_at::date as transaction_date,
        customer_id,
        terminal_id,
        amount::numeric(14, 2) as amount,
        landed_date
    from card_transactions
)

select * from dated
