with order_lines as (
    select * from {{ ref('stg_order_lines') }}
),

classified as (
    select
        *,
        invoice_id like 'C%' as is_cancellation,
        product_id !~ '{{ var("non_product_pattern") }}' as is_product
    from order_lines
)

select * from classified
