{{ config(incremental_strategy='changed_keys', meta={'changed_keys': ['product_id']}) }}
-- depends_on: {{ ref('int_changed_rows') }}

{% if is_incremental() -%}
with changed as (
    select
        product_id,
        min(landed_date) as since
    from {{ ref('int_changed_rows') }}
    where product_id is not null
    group by product_id
),

-- A product has lines all through history: its first and its last are looked up, not searched.
summarised as (
    select
        changed.product_id,
        first_line.is_product,
        first_line.invoiced_at as first_invoiced_at,
        last_line.invoiced_at as last_invoiced_at,
        coalesce(
            (
                select products.first_landed_date from {{ this }} as products
                where
                    products.product_id = changed.product_id
                    and products.first_landed_date < changed.since
            ),
            -- read only when the product was not known before; the offset keeps the planner from
            -- looking for the earliest day of all products
            (
                select min(lines_of_product.landed_date)
                from (
                    select lines.landed_date from {{ ref('fct_order_lines') }} as lines
                    where lines.product_id = changed.product_id
                    offset 0
                ) as lines_of_product
            )
        ) as first_landed_date
    from changed
    cross join lateral (
        select
            lines.is_product,
            lines.invoiced_at
        from {{ ref('fct_order_lines') }} as lines
        where lines.product_id = changed.product_id
        order by lines.invoiced_at
        limit 1
    ) as first_line
    cross join lateral (
        select lines.invoiced_at
        from {{ ref('fct_order_lines') }} as lines
        where lines.product_id = changed.product_id
        order by lines.invoiced_at desc
        limit 1
    ) as last_line
),
{%- else -%}
with summarised as (
    select
        product_id,
        bool_or(is_product) as is_product,
        min(invoiced_at) as first_invoiced_at,
        max(invoiced_at) as last_invoiced_at,
        min(landed_date) as first_landed_date
    from {{ ref('fct_order_lines') }}
    group by product_id
),
{%- endif %}

described as (
    select
        summarised.product_id,
        versions.description,
        summarised.is_product,
        summarised.first_invoiced_at,
        summarised.last_invoiced_at,
        summarised.first_landed_date
    from summarised
    left join {{ ref('dim_products_history') }} as versions
        on summarised.product_id = versions.product_id and versions.is_current
)

select * from described
