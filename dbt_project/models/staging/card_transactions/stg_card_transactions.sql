with card_transactions as (
    {{ landed_card_transactions() }}
),

renamed as (
    select
        _file_id as file_id,
        _row_number as row_number,
        _landed_date as landed_date,
        transaction_id,
        transaction_at,
        customer_id,
        trim(terminal_id) as terminal_id,
        amount
    from card_transactions
)

select * from renamed
