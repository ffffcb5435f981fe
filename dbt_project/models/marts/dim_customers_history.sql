{{ config(incremental_strategy='changed_keys', meta={'changed_keys': ['customer_id']}) }}
-- depends_on: {{ ref('int_changed_rows') }}

{{ dimension_versions('customer_id', 'country') }}
