{# Generated from contracts/chargebacks.odcs.yaml by `make contracts`: change that file. #}
{% macro landed_chargebacks() -%}
    select
        transaction_id,
        reported_at,
        _landed_date,
        _file_id,
        _row_number
    from {{ source("raw", "chargebacks") }}
{%- endmacro %}
