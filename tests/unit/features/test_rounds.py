"""Which tasks a Spark job has, and what each of them is given."""

from datetime import date
from pathlib import Path

from nightshift.features import job
from nightshift.features.run import rounds
from nightshift.spec import UseCase
from nightshift.use_cases.churn import CHURN
from nightshift.use_cases.recommendations import RECOMMENDATIONS
from nightshift.use_cases.spend import SPEND

BUCKETS = 4


def work(use_case: UseCase, key: str, bucket: int) -> job.Work:
    return job.Work(
        use_case=use_case, key=key, months={}, snapshots=(date(2011, 5, 1),),
        label_known_as_of=None, state=Path("state"), target=Path("target"), code="",
        bucket=bucket, buckets=BUCKETS,
    )  # fmt: skip


def test_each_task_has_a_share_of_every_use_case() -> None:
    works = [
        work(use_case, key, bucket)
        for use_case, key in (
            (CHURN, "customer_id"),
            (RECOMMENDATIONS, "product_id"),
            (RECOMMENDATIONS, "customer_id"),
            (SPEND, "customer_id"),
        )
        for bucket in range(BUCKETS)
    ]

    looked_up, vectors = rounds(works)

    assert {each.key for each in looked_up} == {"product_id"}
    assert len(vectors) == 3 * BUCKETS
    for first in range(0, len(vectors), 3):  # as Spark cuts it into tasks: neighbours together
        names = sorted(each.use_case.name for each in vectors[first : first + 3])
        assert names == ["churn", "recommendations", "spend"]


def test_without_anything_to_look_up_there_is_one_round() -> None:
    assert [len(some) for some in rounds([work(CHURN, "customer_id", 0)])] == [1]
