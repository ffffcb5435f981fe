{{
    config(
        incremental_strategy='changed_keys',
        indexes=[{'columns': ['customer_id', 'product_id']}],
        meta={'changed_keys': ['customer_id', 'product_id']},
    )
}}
-- depends_on: {{ ref('int_changed_rows') }}

with recursive changed_pairs as (
    select distinct
        customer_id,
        product_id
    from {{ ref('int_changed_rows') if is_incremental() else ref('fct_order_lines') }}
    where customer_id is not null and product_id is not null
    {%- if not is_incremental() %} and is_cancellation{% endif %}
),

order_lines as (
    {% if is_incremental() -%}
    select lines_of_pair.*
    from changed_pairs
    cross join lateral (
        select *
        from {{ ref('fct_order_lines') }} as lines
        where
            lines.customer_id = changed_pairs.customer_id
            and lines.product_id = changed_pairs.product_id
        offset 0
    ) as lines_of_pair
    {%- else -%}
    select lines.*
    from {{ ref('fct_order_lines') }} as lines
    inner join changed_pairs
        on
            lines.customer_id = changed_pairs.customer_id
            and lines.product_id = changed_pairs.product_id
    {%- endif %}
),

purchases as (
    select * from order_lines
    where not is_cancellation and quantity > 0
),

cancellations as (
    select
        *,
        -- In the order in which they became known: a cancellation that lands later takes no
        -- purchase from one that was known before.
        row_number() over (
            partition by customer_id, product_id
            order by landed_date, invoiced_at, order_line_id
        ) as turn
    from order_lines
    where is_cancellation and quantity < 0
),

matched as (
    select
        customer_id,
        product_id,
        0::bigint as turn,
        null::text as order_line_id,
        null::text as purchase_line_id,
        array[]::text [] as taken
    from cancellations
    where turn = 1

    union all

    select
        customer_id,
        product_id,
        turn,
        order_line_id,
        purchase_line_id,
        case
            when purchase_line_id is null then taken
            else taken || purchase_line_id
        end
    from (
        select distinct on (cancellations.order_line_id)
            cancellations.customer_id,
            cancellations.product_id,
            cancellations.turn,
            cancellations.order_line_id,
            purchases.order_line_id as purchase_line_id,
            matched.taken
        from matched
        inner join cancellations
            on
                matched.customer_id = cancellations.customer_id
                and matched.product_id = cancellations.product_id
                and cancellations.turn = matched.turn + 1
        left join purchases
            on
                cancellations.customer_id = purchases.customer_id
                and cancellations.product_id = purchases.product_id
                and cancellations.invoiced_at >= purchases.invoiced_at
                and cancellations.landed_date >= purchases.landed_date
                and -cancellations.quantity <= purchases.quantity
                and purchases.order_line_id <> all(matched.taken)
        order by
            cancellations.order_line_id asc,
            (purchases.quantity = -cancellations.quantity) desc,
            purchases.invoiced_at desc,
            purchases.landed_date desc,
            purchases.order_line_id desc
    ) as next_turn
),

described as (
    select
        cancellations.order_line_id,
        cancellations.invoice_id,
        cancellations.customer_id,
        cancellations.product_id,
        -cancellations.quantity as cancelled_quantity,
        cancellations.line_amount,
        cancellations.invoiced_at as cancelled_at,
        case
            when purchases.order_line_id is null then 'none'
            when purchases.quantity = -cancellations.quantity then 'whole'
            else 'part'
        end as match,
        purchases.order_line_id as purchase_line_id,
        purchases.quantity as purchased_quantity,
        purchases.invoiced_at as purchased_at,
        cancellations.landed_date
    from cancellations
    inner join matched on cancellations.order_line_id = matched.order_line_id
    left join purchases on matched.purchase_line_id = purchases.order_line_id
)

select * from described
