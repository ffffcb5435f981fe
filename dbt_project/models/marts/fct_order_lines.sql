{{ config(indexes=[{'columns': ['landed_date']}]) }}

with order_lines as (
    select * from {{ ref('int_order_lines_classified') }}
),

valued as (
    select
        file_id::text || ':' || row_number::text as order_line_id,
        invoice_id,
        is_cancellation,
        product_id,
        is_product,
        description,
        quantity,
        unit_price::numeric(14, 4) as unit_price,
        (quantity * unit_price)::numeric(18, 4) as line_amount,
        invoiced_at,
        invoiced_at::date as invoiced_date,
        customer_id,
        country,
        landed_date
    from order_lines
)

select * from valued
