{% macro changed_days(source) -%}
    {#- The landed days of a source whose raw rows have changed since the last complete build, as an
        array of dates: found by nightshift.transform, and passed to dbt. -#}
    array[
        {%- for day in var("changed_days", {}).get(source, []) -%}
            {{ ", " if not loop.first }}'{{ day }}'
        {%- endfor -%}
    ]::date []
{%- endmacro %}
