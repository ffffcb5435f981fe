{# Generated from contracts/order_lines.odcs.yaml by `make contracts`: change that file. #}
{% macro landed_order_lines() -%}
    select
        invoice,
        stock_code,
        description,
        quantity,
        invoice_date,
        price,
        {{ pseudonym("customer_id") }} as customer_id,
        country,
        _landed_date,
        _file_id,
        _row_number
    from {{ source("raw", "order_lines") }}
{%- endmacro %}
