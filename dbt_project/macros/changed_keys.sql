{% macro get_incremental_changed_keys_sql(arguments) %}
    {#- Replaces all rows of the keys that int_changed_rows names; a key that the model gives no row
        for is gone. The rows are looked up: the target has an index that begins with the keys. -#}
    {%- set target = arguments["target_relation"] -%}
    {%- set keys = config.get("meta")["changed_keys"] -%}
    {%- set columns = get_quoted_csv(arguments["dest_columns"] | map(attribute="name")) -%}

    delete from {{ target }}
    where ctid = any(array(
        select replaced.row_id
        from (select distinct {{ keys | join(", ") }} from {{ ref("int_changed_rows") }}) as changed
        cross join lateral (
            select kept.ctid as row_id
            from {{ target }} as kept
            where
                {% for key in keys -%}
                    {{ "and " if not loop.first }}kept.{{ key }} = changed.{{ key }}
                {% endfor -%}
            offset 0
        ) as replaced
    ));

    insert into {{ target }} ({{ columns }})
    select {{ columns }} from {{ arguments["temp_relation"] }};
{% endmacro %}
