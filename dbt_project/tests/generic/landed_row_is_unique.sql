{% test landed_row_is_unique(model, source_name) %}
    {#- The key of landed rows, on the days that this build is about. -#}
    select
        file_id,
        row_number,
        count(*) as times
    from {{ model }}
    where landed_date = any({{ changed_days(source_name) }})
    group by file_id, row_number
    having count(*) > 1
{% endtest %}
