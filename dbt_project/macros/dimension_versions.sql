{% macro dimension_versions(key, attribute) %}
    {#- The versions of `attribute` for each `key` of fct_order_lines, in the order in which they
        became known. A line that lands after one with a later instant is no news, and begins no
        version: so no version depends on what lands after it, but for its end. An incremental run
        goes on from the state before the first changed landed day of each changed key. -#}
    {%- set in_order -%}
        partition by {{ key }} order by landed_date, invoiced_at, order_line_id
    {%- endset -%}
    {%- if is_incremental() -%}
        with changed as (
            select
                {{ key }},
                min(landed_date) as since
            from {{ ref("int_changed_rows") }}
            where {{ key }} is not null
            group by {{ key }}
        ),

        landed_since as (
            select lines_of_day.*
            from generate_series(
                (select min(since) from changed),
                (select max(landed_date) from {{ ref("fct_order_lines") }}),
                interval '1 day'
            ) as days (day)
            cross join lateral (
                select
                    lines.{{ key }},
                    lines.{{ attribute }},
                    lines.invoiced_at,
                    lines.landed_date,
                    lines.order_line_id
                from {{ ref("fct_order_lines") }} as lines
                where lines.landed_date = days.day::date
                offset 0
            ) as lines_of_day
            inner join changed on lines_of_day.{{ key }} = changed.{{ key }}
            where lines_of_day.landed_date >= changed.since
        ),

        known_before as (
            select latest.*
            from changed
            cross join lateral (
                select
                    lines.{{ key }},
                    lines.{{ attribute }},
                    lines.invoiced_at,
                    lines.landed_date,
                    lines.order_line_id
                from {{ ref("fct_order_lines") }} as lines
                where
                    lines.{{ key }} = changed.{{ key }}
                    and lines.{{ attribute }} is not null
                    and lines.landed_date < changed.since
                order by
                    lines.invoiced_at desc, lines.landed_date desc, lines.order_line_id desc
                limit 1
            ) as latest
        ),

        lines as (
            select *, true as is_new from landed_since
            union all
            select *, false as is_new from known_before
        ),
    {%- else -%}
        with lines as (
            select *, true as is_new from {{ ref("fct_order_lines") }}
            where {{ key }} is not null
        ),
    {%- endif %}

    compared as (
        select
            *,
            max(invoiced_at) over (
                {{ in_order }} rows between unbounded preceding and 1 preceding
            ) as latest_before
        from lines
        where {{ attribute }} is not null
    ),

    followed as (
        select
            *,
            lag({{ attribute }}) over ({{ in_order }}) as {{ attribute }}_before
        from compared
        where latest_before is null or invoiced_at >= latest_before
    ),

    begun as (
        select
            {{ key }},
            {{ attribute }},
            invoiced_at as valid_from,
            landed_date,
            order_line_id
        from followed
        where is_new and {{ attribute }}_before is distinct from {{ attribute }}
        {%- if is_incremental() %}
        union all
        select versions.*
        from changed
        cross join lateral (
            select
                known.{{ key }},
                known.{{ attribute }},
                known.valid_from,
                known.landed_date,
                known.order_line_id
            from {{ this }} as known
            where known.{{ key }} = changed.{{ key }}
            offset 0
        ) as versions
        where versions.landed_date < changed.since
        {%- endif %}
    ),

    ended as (
        select
            {{ key }},
            row_number() over versions as version,
            {{ attribute }},
            valid_from,
            lead(valid_from) over versions as valid_to,
            lead(landed_date) over versions as valid_to_landed_date,
            lead(landed_date) over versions is null as is_current,
            landed_date,
            order_line_id
        from begun
        window versions as (
            partition by {{ key }} order by landed_date, valid_from, order_line_id
        )
    )

    select * from ended
{% endmacro %}
