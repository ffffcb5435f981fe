{% macro generate_schema_name(custom_schema_name, node) -%}
    {#- staging, intermediate and marts are the schemas' whole names: Spark and SQL users read them -#}
    {{ (custom_schema_name or target.schema) | trim }}
{%- endmacro %}
