{{ config(incremental_strategy='changed_keys', meta={'changed_keys': ['product_id']}) }}
-- depends_on: {{ ref('int_changed_rows') }}

{{ dimension_versions('product_id', 'description') }}
