{% macro pseudonym(column) -%}
    {#- The key is looked up once a query: see ops.pseudonym in schema.sql. -#}
    ops.pseudonym(
            {{ column }}::text,
            (select keys.inner_key from {{ pseudonym_keys() }} as keys),
            (select keys.outer_key from {{ pseudonym_keys() }} as keys)
        )
{%- endmacro %}


{% macro pseudonym_keys() -%}
    {#- A unit test puts a key that everybody knows in its place. -#}
    ops.pseudonym_keys
{%- endmacro %}
