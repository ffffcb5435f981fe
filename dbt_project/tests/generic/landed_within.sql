{% test landed_within(model, column_name, days) %}
    {#- Freshness as seen at as_of. dbt's own `source freshness` compares with the server's clock,
        which would call every backfill stale; a row that landed at as_of or later is unknown. -#}
    {%- if execute and not var('as_of', none) -%}
        {{ exceptions.raise_compiler_error("landed_within needs --vars '{as_of: YYYY-MM-DD}'") }}
    {%- endif %}

    {%- set as_of = "date '" ~ var("as_of", "1970-01-01") ~ "'" %}

    with latest as (
        select max({{ column_name }}) as last_landed_date
        from {{ model }}
        where
            {{ column_name }} < {{ as_of }}
            -- The whole table is read only when it is stale: otherwise one day after the other, down
            -- from the newest. A count, for to find one row the planner would search from the start.
            and not exists (
                select 1 from generate_series(1, {{ days }}) as ago (days)
                where
                    (
                        select count(*) from {{ model }}
                        where {{ column_name }} = {{ as_of }} - ago.days
                    ) > 0
            )
    )

    select
        last_landed_date,
        {{ as_of }} - last_landed_date as days_since
    from latest
    {#- A source that has never landed is not stale; ingest refuses the night if a use case needs it. #}
    where last_landed_date is not null
{% endtest %}
