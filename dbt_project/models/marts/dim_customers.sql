with order_lines as (
    select * from {{ ref('fct_order_lines') }}
    where customer_id is not null
),

located as (
    select distinct on (customer_id)
        customer_id,
        country
    from order_lines
    order by customer_id asc, invoiced_at desc, landed_date desc, order_line_id desc
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

joined as (
    select
        summarised.customer_id,
        located.country,
        summarised.first_invoiced_at,
        summarised.last_invoiced_at,
        summarised.first_landed_date,
        summarised.last_landed_date
    from summarised
    inner join located on summarised.customer_id = located.customer_id
)

select * from joined
