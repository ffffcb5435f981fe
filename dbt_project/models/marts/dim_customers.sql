{{ config(incremental_strategy='changed_keys', meta={'changed_keys': ['customer_id']}) }}
-- depends_on: {{ ref('int_changed_rows') }}

with order_lines as (
    {% if is_incremental() -%}
    select lines_of_customer.*
    from (
        select distinct customer_id from {{ ref('int_changed_rows') }}
        where customer_id is not null
    ) as changed
    cross join lateral (
        select
            lines.customer_id,
            lines.invoiced_at,
            lines.landed_date
        from {{ ref('fct_order_lines') }} as lines
        where lines.customer_id = changed.customer_id
        offset 0
    ) as lines_of_customer
    {%- else -%}
    select * from {{ ref('fct_order_lines') }}
    where customer_id is not null
    {%- endif %}
),

summarised as (
    select
        customer_id,
        min(invoiced_at) as first_invoiced_at,
        max(invoiced_at) as last_invoiced_at,
        min(landed_date) as first_landed_date,
        max(landed_date) as last_landed_date
    from order_lines
    group by customer_id
),

located as (
    select
        summarised.customer_id,
        versions.country,
        summarised.first_invoiced_at,
        summarised.last_invoiced_at,
        summarised.first_landed_date,
        summarised.last_landed_date
    from summarised
    left join {{ ref('dim_customers_history') }} as versions
        on summarised.customer_id = versions.customer_id and versions.is_current
)

select * from located
