with order_lines as (
    {{ landed_order_lines() }}
),

renamed as (
    select
        _file_id as file_id,
        _row_number as row_number,
        _landed_date as landed_date,
        trim(invoice) as invoice_id,
        upper(trim(stock_code)) as product_id,
        nullif(trim(description), '') as description,
        quantity,
        price as unit_price,
        invoice_date as invoiced_at,
        customer_id,
        trim(country) as country
    from order_lines
)

select * from renamed
