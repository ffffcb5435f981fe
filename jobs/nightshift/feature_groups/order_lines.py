"""What order lines tell about a customer: recency, frequency, money, returns, rhythm, range."""

from nightshift.spec import (
    Aggregate,
    FeatureGroup,
    Measure,
    Ratio,
    Source,
    Trend,
    Window,
    season_last_year,
)

ORDER_LINES = Source(
    name="order_lines",
    relation="marts.fct_order_lines",
    landed_days="order_lines",
    row_id="order_line_id",
    event_time="invoiced_at",
    landed_date="landed_date",
    columns={
        "customer_id": "string",
        "invoice_id": "string",
        "product_id": "string",
        "country": "string",
        "is_cancellation": "boolean",
        "is_product": "boolean",
        "quantity": "integer",
        "unit_price": "decimal",
        "line_amount": "decimal",
        "invoiced_at": "timestamp",
        "invoiced_date": "date",
        "landed_date": "date",
    },
)

IS_PURCHASE = "not is_cancellation and quantity > 0"

CUSTOMER_ORDERS = FeatureGroup(
    name="customer_orders",
    source=ORDER_LINES,
    entity="customer",
    key="customer_id",
    measures=(
        Measure(
            name="purchase", column="invoiced_at", where=IS_PURCHASE, description="lines bought"
        ),
        Measure(name="order", column="invoice_id", where=IS_PURCHASE, description="orders"),
        Measure(
            name="purchase_day",
            column="invoiced_date",
            where=IS_PURCHASE,
            description="days with a purchase",
        ),
        Measure(
            name="purchase_month",
            expression="month(invoiced_at) + 12 * year(invoiced_at)",
            type="integer",
            where=IS_PURCHASE,
            description="months with a purchase",
        ),
        Measure(
            name="purchase_amount",
            column="line_amount",
            where=IS_PURCHASE,
            description="amounts of lines bought",
        ),
        Measure(
            name="purchase_quantity",
            column="quantity",
            where=IS_PURCHASE,
            description="pieces of lines bought",
        ),
        Measure(
            name="purchase_price",
            column="unit_price",
            where=IS_PURCHASE,
            description="unit prices of lines bought",
        ),
        Measure(
            name="product",
            column="product_id",
            where=f"{IS_PURCHASE} and is_product",
            description="products bought",
        ),
        Measure(
            name="return",
            column="invoiced_at",
            where="is_cancellation",
            description="lines cancelled",
        ),
        Measure(
            name="return_order",
            column="invoice_id",
            where="is_cancellation",
            description="cancellations",
        ),
        Measure(
            name="return_amount",
            column="line_amount",
            where="is_cancellation",
            description="amounts of lines cancelled",
        ),
    ),
    aggregates=(
        Aggregate(measure="purchase", aggregations=("days_since_last", "days_since_first")),
        Aggregate(measure="purchase", aggregations=("count",), windows=(30, 90, 180, 365)),
        Aggregate(
            measure="order", aggregations=("distinct",), windows=(30, 60, 90, 180, 365, None)
        ),
        Aggregate(
            measure="purchase_day", aggregations=("distinct",), windows=(30, 60, 90, 180, 365, None)
        ),
        # A regular customer's purchases are spread over days and months, a chance one's are not.
        Aggregate(measure="purchase_day", aggregations=("entropy",), windows=(365,)),
        Aggregate(measure="purchase_month", aggregations=("distinct",), windows=(180, 365)),
        Aggregate(
            measure="purchase_amount", aggregations=("sum",), windows=(30, 60, 90, 180, 365, None)
        ),
        Aggregate(measure="purchase_amount", aggregations=("mean", "max"), windows=(90, 365)),
        Aggregate(measure="purchase_amount", aggregations=("std",), windows=(365,)),
        Aggregate(measure="purchase_quantity", aggregations=("sum",), windows=(90, 365)),
        Aggregate(measure="purchase_quantity", aggregations=("mean",), windows=(365,)),
        Aggregate(measure="purchase_price", aggregations=("mean", "max"), windows=(365,)),
        Aggregate(measure="product", aggregations=("distinct",), windows=(90, 180, 365)),
        Aggregate(measure="return", aggregations=("days_since_last",)),
        Aggregate(measure="return_order", aggregations=("distinct",), windows=(90, 365)),
        Aggregate(measure="return_amount", aggregations=("sum",), windows=(90, 365)),
    ),
    ratios=(
        # The time a customer has been buying, over the days on which they bought: their rhythm.
        Ratio(
            name="customer_purchase_gap_mean_all",
            numerator="customer_purchase_days_since_first_all",
            denominator="customer_purchase_day_distinct_all",
        ),
        # How many of their own gaps have passed since the last purchase.
        Ratio(
            name="customer_purchase_recency_over_gap_all",
            numerator="customer_purchase_days_since_last_all",
            denominator="customer_purchase_gap_mean_all",
        ),
        Ratio(
            name="customer_order_trend_90d_365d",
            numerator="customer_order_distinct_90d",
            denominator="customer_order_distinct_365d",
        ),
        Ratio(
            name="customer_purchase_amount_trend_90d_365d",
            numerator="customer_purchase_amount_sum_90d",
            denominator="customer_purchase_amount_sum_365d",
        ),
        Ratio(
            name="customer_purchase_amount_per_order_365d",
            numerator="customer_purchase_amount_sum_365d",
            denominator="customer_order_distinct_365d",
        ),
        Ratio(
            name="customer_return_share_365d",
            numerator="customer_return_amount_sum_365d",
            denominator="customer_purchase_amount_sum_365d",
        ),
    ),
)

IS_SOLD = "is_cancellation or quantity > 0"

CUSTOMER_SPEND = FeatureGroup(
    name="customer_spend",
    source=ORDER_LINES,
    entity="customer",
    key="customer_id",
    measures=(
        Measure(
            name="net_amount",
            column="line_amount",
            where=IS_SOLD,
            description="amounts bought, net of cancellations",
        ),
    ),
    aggregates=(
        Aggregate(
            measure="net_amount",
            aggregations=("sum",),
            windows=(
                30,
                90,
                180,
                365,
                None,
                Window(days=90, lag=90),
                season_last_year(90),
                # what preceded that season: with it, how much the season itself brings
                Window(days=90, lag=365),
            ),
        ),
    ),
    trends=(Trend(measure="net_amount", aggregation="sum", window=90, baseline=365),),
)
