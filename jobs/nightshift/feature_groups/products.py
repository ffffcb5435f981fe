"""What order lines tell about products, and about a customer and a product together."""

from nightshift.feature_groups.order_lines import IS_PURCHASE, ORDER_LINES
from nightshift.spec import Aggregate, FeatureGroup, Measure, Ratio, Trend, Window

IS_GOODS = f"{IS_PURCHASE} and is_product"

PRODUCT_SALES = FeatureGroup(
    name="product_sales",
    source=ORDER_LINES,
    entity="product",
    key="product_id",
    measures=(
        Measure(name="buyer", column="customer_id", where=IS_GOODS, description="buyers"),
        Measure(name="sale", column="invoiced_at", where=IS_GOODS, description="lines sold"),
        Measure(
            name="price", column="unit_price", where=IS_GOODS, description="prices of lines sold"
        ),
        Measure(
            name="piece", column="quantity", where=IS_GOODS, description="pieces of lines sold"
        ),
    ),
    aggregates=(
        Aggregate(
            measure="buyer",
            aggregations=("distinct",),
            # the last window is the same season a year ago: what follows that date
            windows=(7, 14, 28, 90, 365, Window(days=28, lag=337)),
        ),
        Aggregate(measure="sale", aggregations=("days_since_first", "days_since_last")),
        Aggregate(measure="price", aggregations=("mean",), windows=(28, 365)),
        Aggregate(measure="piece", aggregations=("mean",), windows=(90,)),
    ),
    trends=(
        Trend(measure="buyer", aggregation="distinct", window=14, baseline=90),
        Trend(measure="buyer", aggregation="distinct", window=28, baseline=365),
        Trend(measure="price", aggregation="mean", window=28, baseline=365),
    ),
)

CUSTOMER_BASKET = FeatureGroup(
    name="customer_basket",
    source=ORDER_LINES,
    entity="customer",
    key="customer_id",
    measures=(
        Measure(name="order", column="invoice_id", where=IS_GOODS, description="orders of goods"),
        Measure(name="line", column="invoiced_at", where=IS_GOODS, description="lines of goods"),
        Measure(name="product", column="product_id", where=IS_GOODS, description="products"),
        Measure(name="price", column="unit_price", where=IS_GOODS, description="prices"),
        Measure(
            name="goods_day",
            column="invoiced_date",
            where=IS_GOODS,
            description="days with goods",
        ),
    ),
    aggregates=(
        Aggregate(measure="order", aggregations=("distinct",), windows=(28, 90, 365)),
        Aggregate(measure="line", aggregations=("count",), windows=(28, 90, 365)),
        Aggregate(measure="line", aggregations=("days_since_last", "days_since_first")),
        Aggregate(measure="product", aggregations=("distinct",), windows=(90, 365)),
        Aggregate(measure="price", aggregations=("mean",), windows=(365,)),
        Aggregate(measure="goods_day", aggregations=("gap_mean",), windows=(365,)),
    ),
    ratios=(
        Ratio(
            name="customer_lines_per_order_365d",
            numerator="customer_line_count_365d",
            denominator="customer_order_distinct_365d",
        ),
        Ratio(
            name="customer_products_per_line_365d",
            numerator="customer_product_distinct_365d",
            denominator="customer_line_count_365d",
        ),
        Ratio(
            name="customer_recency_over_gap_365d",
            numerator="customer_line_days_since_last_all",
            denominator="customer_goods_day_gap_mean_365d",
        ),
    ),
)

PAIR_HISTORY = FeatureGroup(
    name="pair_history",
    source=ORDER_LINES,
    entity="pair",
    key=("customer_id", "product_id"),
    measures=(
        Measure(name="order", column="invoice_id", where=IS_GOODS, description="orders with it"),
        Measure(name="day", column="invoiced_date", where=IS_GOODS, description="days with it"),
        Measure(name="piece", column="quantity", where=IS_GOODS, description="pieces of it"),
        Measure(
            name="return",
            column="invoiced_at",
            where="is_cancellation",
            description="lines of it that were cancelled",
        ),
    ),
    aggregates=(
        Aggregate(measure="order", aggregations=("distinct",), windows=(28, 90, 180, 365, None)),
        Aggregate(
            measure="order",
            aggregations=("days_since_last", "days_since_first"),
        ),
        Aggregate(measure="day", aggregations=("gap_mean", "gap_last")),
        Aggregate(measure="piece", aggregations=("mean", "sum"), windows=(365,)),
        Aggregate(measure="return", aggregations=("count",), windows=(365,)),
    ),
    ratios=(
        # How many of its own gaps have passed since the pair's last order: due again.
        Ratio(
            name="pair_recency_over_gap_all",
            numerator="pair_order_days_since_last_all",
            denominator="pair_day_gap_mean_all",
        ),
    ),
)
