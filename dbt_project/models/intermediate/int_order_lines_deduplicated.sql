with order_lines as (
    select * from {{ ref('stg_order_lines') }}
),

kept_first_landed as (
    -- The first landed copy is kept, so that a copy that lands later changes nothing earlier.
    select distinct on (
        invoice_id, product_id, description, quantity, unit_price, invoiced_at, customer_id, country
    ) *
    from order_lines
    order by
        invoice_id, product_id, description, quantity, unit_price, invoiced_at, customer_id,
        country, landed_date, file_id, row_number
)

select * from kept_first_landed
