{# Generated from contracts/card_transactions.odcs.yaml by `make contracts`: change that file. #}
{% macro landed_card_transactions() -%}
    select
        transaction_id,
        transaction_at,
        {{ pseudonym("customer_id") }} as customer_id,
        terminal_id,
        amount,
        _landed_date,
        _file_id,
        _row_number
    from {{ source("raw", "card_transactions") }}
{%- endmacro %}
