{% test names_a_source(model, column_name) %}
    {#- dbt's `accepted_values`, of the sources that have a mart of their own, and of the marts that are
        made of several. -#}
    select {{ column_name }}
    from {{ model }}
    where {{ column_name }} <> all(array[
        {%- for source in fromjson(env_var('DBT_MARTS_OF_SOURCES', '{}')) | list + joined_marts() | list -%}
            {{ ", " if not loop.first }}'{{ source }}'
        {%- endfor -%}
    ]::text [])
{% endtest %}
