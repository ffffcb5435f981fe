{{
    config(
        incremental_strategy='changed_keys',
        indexes=[{'columns': ['landed_date']}],
        meta={'changed_keys': ['transaction_id'], 'landed_days': 'payments'},
    )
}}
-- depends_on: {{ ref('int_changed_rows') }}, {{ ref('fct_card_transactions') }}
-- depends_on: {{ ref('fct_chargebacks') }}

{% if is_incremental() -%}
with reported as (
    select
        payments.transaction_id,
        payments.transaction_at,
        payments.customer_id,
        payments.terminal_id,
        payments.amount,
        reports.transaction_id is not null as is_fraud,
        reports.reported_date,
        reports.landed_date as report_landed_date,
        payments.landed_date
    from (
        select distinct transaction_id from {{ ref('int_changed_rows') }}
        where transaction_id is not null
    ) as changed
    cross join lateral (
        select * from {{ ref('fct_card_transactions') }} as kept
        where kept.transaction_id = changed.transaction_id
        offset 0
    ) as payments
    left join lateral (
        select * from {{ ref('fct_chargebacks') }} as kept
        where kept.transaction_id = changed.transaction_id
        offset 0
    ) as reports on true
)
{%- elif is_held(['card_transactions', 'chargebacks']) -%}
-- one of their marts may not be there; the next build is a full refresh again
with reported as (
    select
        null::bigint as transaction_id,
        null::timestamp as transaction_at,
        null::text as customer_id,
        null::text as terminal_id,
        null::numeric(14, 2) as amount,
        null::boolean as is_fraud,
        null::date as reported_date,
        null::date as report_landed_date,
        null::date as landed_date
    where false
)
{%- else -%}
with reported as (
    select
        payments.transaction_id,
        payments.transaction_at,
        payments.customer_id,
        payments.terminal_id,
        payments.amount,
        reports.transaction_id is not null as is_fraud,
        reports.reported_date,
        reports.landed_date as report_landed_date,
        payments.landed_date
    from {{ ref('fct_card_transactions') }} as payments
    left join {{ ref('fct_chargebacks') }} as reports
        on payments.transaction_id = reports.transaction_id
    -- what landed together is read together
    order by payments.landed_date, payments.transaction_id
)
{%- endif %}

select * from reported
