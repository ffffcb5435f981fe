with chargebacks as (
    {{ landed_chargebacks() }}
),

renamed as (
    select
        _file_id as file_id,
        _row_number as row_number,
        _landed_date as landed_date,
        transaction_id,
        reported_at
    from chargebacks
)

select * from renamed
