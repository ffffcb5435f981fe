with order_lines as (
    select * from {{ ref('fct_order_lines') }}
),

described as (
    select distinct on (product_id)
        product_id,
        description
    from order_lines
    where description is not null
    order by product_id asc, invoiced_at desc, landed_date desc, order_line_id desc
),

summarised as (
    select
        product_id,
        bool_or(is_product) as is_product,
        min(invoiced_at) as first_invoiced_at,
        max(invoiced_at) as last_invoiced_at,
        min(landed_date) as first_landed_date
    from order_lines
    group by product_id
),

joined as (
    select
        summarised.product_id,
        described.description,
        summarised.is_product,
        summarised.first_invoiced_at,
        summarised.last_invoiced_at,
        summarised.first_landed_date
    from summarised
    left join described on summarised.product_id = described.product_id
)

select * from joined
