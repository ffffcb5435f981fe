{% test landed_in(model, column_name, to, field, source_name) %}
    {#- dbt's `relationships`, on the rows of the days that this build is about. -#}
    select child.{{ column_name }}
    from {{ model }} as child
    left join lateral (
        select true as is_there
        from {{ to }} as parent
        where parent.{{ field }} = child.{{ column_name }}
        limit 1
    ) as parent on true
    where child.landed_date = any({{ changed_days(source_name) }}) and parent.is_there is null
{% endtest %}
