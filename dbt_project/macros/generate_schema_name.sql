{% macro generate_schema_name(custom_schema_name, node) -%}
    {#- The schemas' whole names are staging, intermediate and marts: others read them. -#}
    {{ (custom_schema_name or target.schema) | trim }}
{%- endmacro %}
