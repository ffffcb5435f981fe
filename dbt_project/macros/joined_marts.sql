{% macro joined_marts() -%}
    {#- Marts that are made of several sources, and whose landed days are counted: by the name that
        fct_landed_days has for each, the mart and its sources. -#}
    {{ return({"payments": {"mart": "fct_payments", "sources": ["card_transactions", "chargebacks"]}}) }}
{%- endmacro %}


{% macro is_held(sources) -%}
    {#- Whether one of the sources is held, and its marts may not be there. -#}
    {%- set held = var("held", []) -%}
    {{ return(sources | select("in", held) | list | length > 0) }}
{%- endmacro %}
