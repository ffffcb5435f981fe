{%- set lookup = ['transaction_id'] -%}
{{
    config(
        incremental_strategy='first_landed',
        indexes=[{'columns': ['landed_date']}],
        meta={
            'source': 'chargebacks',
            'lookup': lookup,
            'nullable': [],
            'changed_keys': ['transaction_id'],
        },
    )
}}
-- depends_on: {{ ref('int_changed_rows') }}

with chargebacks as (
    {{ first_landed('chargebacks', ref('stg_chargebacks'), lookup, [], 'transaction_id') }}
),

dated as (
    select
        transaction_id,
        reported_at,
        reported_at::date as reported_date,
        landed_date
    from chargebacks
)

select * from dated
