{{ config(incremental_strategy='changed_keys', meta={'changed_keys': ['source', 'landed_date']}) }}
-- depends_on: {{ ref('int_changed_rows') }}

{%- set facts = {
    'order_lines': (ref('stg_order_lines'), ref('fct_order_lines')),
    'card_transactions': (ref('stg_card_transactions'), ref('fct_card_transactions')),
    'chargebacks': (ref('stg_chargebacks'), ref('fct_chargebacks')),
} %}

with counted as (
    {% for source, (landed, kept) in facts.items() -%}
    {{ "union all" if not loop.first }}
    {% if is_incremental() -%}
    select
        changed.source,
        changed.landed_date,
        (
            select count(*) from {{ landed }} as landed
            where landed.landed_date = changed.landed_date
        ) as rows_landed,
        (
            select count(*) from {{ kept }} as kept
            where kept.landed_date = changed.landed_date
        ) as rows_kept
    from (
        select distinct
            source,
            landed_date
        from {{ ref('int_changed_rows') }}
        where source = '{{ source }}'
    ) as changed
    {%- else -%}
    select
        '{{ source }}' as source,
        landed_date,
        landed.row_count as rows_landed,
        coalesce(kept.row_count, 0) as rows_kept
    from (
        select
            landed_date,
            count(*) as row_count
        from {{ landed }}
        group by landed_date
    ) as landed
    left join (
        select
            landed_date,
            count(*) as row_count
        from {{ kept }}
        group by landed_date
    ) as kept using (landed_date)
    {%- endif %}
    {% endfor %}
),

compared as (
    select
        source,
        landed_date,
        rows_landed,
        rows_kept,
        rows_landed - rows_kept as duplicates_removed,
        '{{ invocation_id }}'::text as build_id
    from counted
    where rows_landed > 0
)

select * from compared
