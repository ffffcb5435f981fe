{% macro get_incremental_changed_keys_sql(arguments) %}
    {#- Replaces all rows of the keys that int_changed_rows names; a key that the model gives no row
        for is gone. The rows are looked up: the target has an index that begins with the keys.
        With `landed_days` in its meta the landed days of which rows go or come are noted as those of
        that name, for fct_landed_days to count. -#}
    {%- set target = arguments["target_relation"] -%}
    {%- set keys = config.get("meta")["changed_keys"] -%}
    {%- set columns = get_quoted_csv(arguments["dest_columns"] | map(attribute="name")) -%}
    {%- set landed_days = config.get("meta").get("landed_days") -%}
    {%- set replaced_rows -%}
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
    {%- endset %}
    {%- if landed_days %}

    insert into {{ ref("int_changed_rows") }} (source, landed_date)
    select distinct '{{ landed_days }}', noted.landed_date from (
        select landed_date from {{ target }} where ctid = any(array({{ replaced_rows }}))
        union all
        select landed_date from {{ arguments["temp_relation"] }}
    ) as noted;
    {%- endif %}

    delete from {{ target }} where ctid = any(array({{ replaced_rows }}));

    insert into {{ target }} ({{ columns }})
    select {{ columns }} from {{ arguments["temp_relation"] }};
{% endmacro %}
