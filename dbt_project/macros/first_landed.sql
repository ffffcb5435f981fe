{% macro same_identity(left, right, lookup, nullable) -%}
    {#- Equality on the columns that are never missing, so that it can be hashed or looked up in an
        index; a missing value equals a missing value. -#}
    {% for column in lookup -%}
        {{ "and " if not loop.first }}{{ left }}.{{ column }} = {{ right }}.{{ column }}
    {% endfor -%}
    {% for column in nullable -%}
        and {{ left }}.{{ column }} is not distinct from {{ right }}.{{ column }}
    {% endfor -%}
{%- endmacro %}


{% macro first_landed(source, copies, lookup, nullable, event_column) %}
    {#- Of the landed copies that agree in `lookup` and `nullable`, the first landed: by landed date,
        file and row. A full refresh reads all copies. An incremental run gives the rows that the
        strategy `first_landed` puts in the place of the changed days: the copies landed on these
        days, unless a copy is kept that landed earlier; and, for a kept copy that is there no more,
        the next one, on whatever day it landed.

        copies: relation with landed_date, file_id, row_number.
        event_column: of `lookup`; raw holds it as landed, so that it can be compared cheaply. -#}
    {%- set identity = (lookup + nullable) | join(", ") -%}
    {%- if not is_incremental() -%}
        select * from (
            select distinct on ({{ identity }}) *
            from {{ copies }}
            order by {{ identity }}, landed_date, file_id, row_number
        ) as first_ever
        -- what landed together is read together
        order by landed_date, file_id, row_number
    {%- else -%}
        {%- set days = changed_days(source) -%}
        with first_arrived as (
            select distinct on ({{ identity }}) *
            from {{ copies }}
            where landed_date = any({{ days }})
            order by {{ identity }}, landed_date, file_id, row_number
        ),

        first_ever as (
            select first_arrived.*
            from first_arrived
            -- a lateral join with a limit, for it can only be a loop over the mart's index
            left join lateral (
                select true as is_kept
                from {{ this }} as kept
                where
                    {{ same_identity("kept", "first_arrived", lookup, nullable) }}
                    and kept.landed_date < first_arrived.landed_date
                    and kept.landed_date <> all({{ days }})
                limit 1
            ) as earlier on true
            where earlier.is_kept is null
        ),

        -- what was kept of the changed days and has no equal there any more that landed by then
        lost as (
            select {{ identity }} from {{ this }} as kept
            where
                kept.landed_date = any({{ days }})
                and not exists (
                    select 1 from first_arrived
                    where
                        {{ same_identity("first_arrived", "kept", lookup, nullable) }}
                        and first_arrived.landed_date <= kept.landed_date
                )
        ),

        landed_elsewhere as (
            select copies.*
            from (
                select * from {{ copies }}
                where
                    -- without a loss the whole history is not read
                    exists (select 1 from lost)
                    and landed_date <> all({{ days }})
                    and {{ event_column }} between
                    (select min({{ event_column }}) from lost)
                    and (select max({{ event_column }}) from lost)
            ) as copies
            inner join lost on {{ same_identity("copies", "lost", lookup, nullable) }}
        )

        select distinct on ({{ identity }}) *
        from (
            select * from first_ever
            union all
            select * from landed_elsewhere
        ) as candidates
        order by {{ identity }}, landed_date, file_id, row_number
    {%- endif -%}
{% endmacro %}


{% macro get_incremental_first_landed_sql(arguments) %}
    {#- Replaces the changed days, and each kept copy that a newly found one precedes. What goes and
        what comes is noted in int_changed_rows, in the same transaction. -#}
    {%- set target = arguments["target_relation"] -%}
    {%- set found = arguments["temp_relation"] -%}
    {%- set meta = config.get("meta") -%}
    {%- set days = changed_days(meta["source"]) -%}
    {%- set same = same_identity("kept", "found", meta["lookup"], meta["nullable"]) -%}
    {%- set columns = get_quoted_csv(arguments["dest_columns"] | map(attribute="name")) -%}
    {%- set keys -%}
        landed_date
        {%- for key, type in [
            ("customer_id", "text"), ("product_id", "text"), ("transaction_id", "bigint")
        ] -%}
            , {{ key if key in meta["changed_keys"] else "null::" ~ type }}
        {%- endfor -%}
    {%- endset -%}

    analyze {{ found }};

    create temporary table {{ found.identifier }}_preceded on commit drop as
    select distinct preceded.row_id
    from {{ found }} as found
    cross join lateral (
        select kept.ctid as row_id
        from {{ target }} as kept
        where {{ same }}
        offset 0
    ) as preceded;

    insert into {{ ref("int_changed_rows") }}
    (source, landed_date, customer_id, product_id, transaction_id)
    select distinct '{{ meta["source"] }}', changed.* from (
        select {{ keys }} from {{ target }} where landed_date = any({{ days }})
        union all
        select {{ keys }} from {{ target }}
        where ctid = any(array(select row_id from {{ found.identifier }}_preceded))
        union all
        select {{ keys }} from {{ found }}
        union all
        select day, null, null, null from unnest({{ days }}) as days (day)
    ) as changed;

    delete from {{ target }} where landed_date = any({{ days }});
    delete from {{ target }}
    where ctid = any(array(select row_id from {{ found.identifier }}_preceded));

    insert into {{ target }} ({{ columns }})
    select {{ columns }} from {{ found }};
{% endmacro %}
