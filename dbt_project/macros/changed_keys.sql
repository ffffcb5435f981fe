{% macro get_incremental_changed_keys_sql(arguments) %}
    {#- Replaces all rows of the keys that int_changed_rows names; a key that the model gives no row
        for is gone. -#}
    {%- set target = arguments["target_relation"] -%}
    {%- set keys = config.get("meta")["changed_keys"] -%}
    {%- set columns = get_quoted_csv(arguments["dest_columns"] | map(attribute="name")) -%}

    delete from {{ target }} as replaced
    using (select distinct {{ keys | join(", ") }} from {{ ref("int_changed_rows") }}) as changed
    where
        {% for key in keys -%}
            {{ "and " if not loop.first }}replaced.{{ key }} = changed.{{ key }}
        {% endfor -%}
    ;

    insert into {{ target }} ({{ columns }})
    select {{ columns }} from {{ arguments["temp_relation"] }};
{% endmacro %}
