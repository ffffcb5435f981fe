{%- set lookup = ['product_id', 'invoiced_at', 'invoice_id', 'quantity', 'unit_price'] -%}
{%- set nullable = ['description', 'customer_id', 'country'] -%}
{{
    config(
        incremental_strategy='first_landed',
        indexes=[
            {'columns': ['landed_date']},
            {'columns': ['product_id', 'invoiced_at']},
            {'columns': ['customer_id', 'product_id']},
            {'columns': ['customer_id', 'invoiced_at', 'landed_date']},
        ],
        meta={
            'source': 'order_lines',
            'lookup': lookup,
            'nullable': nullable,
            'changed_keys': ['customer_id', 'product_id'],
        },
    )
}}
-- depends_on: {{ ref('int_changed_rows') }}

with order_lines as (
    {{ first_landed(
        'order_lines', ref('int_order_lines_classified'), lookup, nullable, 'invoiced_at'
    ) }}
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
