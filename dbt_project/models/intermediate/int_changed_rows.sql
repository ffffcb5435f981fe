{{ config(materialized='incremental') }}

with nothing as (
    select
        null::text as source,
        null::date as landed_date,
        null::text as customer_id,
        null::text as product_id,
        null::bigint as transaction_id
    where false
)

select * from nothing
