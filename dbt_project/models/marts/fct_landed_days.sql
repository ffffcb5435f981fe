{{ config(incremental_strategy='changed_keys', meta={'changed_keys': ['source', 'landed_date']}) }}
-- depends_on: {{ ref('int_changed_rows') }}, {{ ref('fct_payments') }}

{#- Found by nightshift.transform: {"order_lines": "fct_order_lines", …}. -#}
{%- set marts_of_sources = fromjson(env_var('DBT_MARTS_OF_SOURCES', '{}')) %}
{#- A source that is held is not counted: its marts may not be there. -#}
{%- set held = var('held', []) %}

with counted as (
    {% for source, mart in marts_of_sources.items() if source not in held -%}
    {%- set landed, kept = ref('stg_' ~ source), ref(mart) -%}
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
    {%- for name, joined in joined_marts().items() if not is_held(joined['sources']) %}
    union all
    select
        '{{ name }}' as source,
        kept.landed_date,
        count(*) as rows_landed,
        count(*) as rows_kept
    from {{ ref(joined['mart']) }} as kept
    {%- if is_incremental() %}
    where kept.landed_date in (
        select changed.landed_date from {{ ref('int_changed_rows') }} as changed
        where changed.source = '{{ name }}'
    )
    {%- endif %}
    group by kept.landed_date
    {%- endfor %}
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
