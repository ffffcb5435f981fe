{% test reported_after_payment(model, column_name) %}
    {#- No report, of those that landed on the days that this build is about, is dated before its
        payment: such a one counts, for what it says of the payment, and its date is to be mended. -#}
    select reports.transaction_id
    from {{ model }} as reports
    cross join lateral (
        select payments.transaction_date
        from {{ ref("fct_card_transactions") }} as payments
        where payments.transaction_id = reports.transaction_id
        limit 1
    ) as payment
    where
        reports.landed_date = any({{ changed_days("chargebacks") }})
        and reports.{{ column_name }} < payment.transaction_date
{% endtest %}
