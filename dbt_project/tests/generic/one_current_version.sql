{% test one_current_version(model, column_name) %}
    {#- Each changed key has one current version, and none that ends before it begins. -#}
    select
        {{ column_name }},
        count(*) filter (where is_current) as current_versions
    from {{ model }}
    where {{ column_name }} in (select changed.{{ column_name }} from {{ ref("int_changed_rows") }} as changed)
    group by {{ column_name }}
    having count(*) filter (where is_current) <> 1 or bool_or(valid_to < valid_from)
{% endtest %}
