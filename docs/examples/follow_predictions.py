"""Take over new predictions as soon as they are published: python follow_predictions.py URL

URL is postgresql://… of a role with the rights of nightshift_reader.
"""

import select
import sys
from collections.abc import Iterator
from contextlib import closing

import psycopg2

QUERY = """
select publication_id, customer_id, churn_probability
from predictions.churn_latest
where band = 'high'
order by churn_probability desc
limit 10
"""


def follow(url: str, seconds: float = 3600.0) -> Iterator[list[tuple[str, str, float]]]:
    """Yield the ten highest of the newest date: at once, and each time they are others.

    What is published while nobody listens is not told later, so the table is read after LISTEN and
    at least every ``seconds``.
    """
    seen = None
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("listen nightshift_publications")
        while True:
            cursor.execute(QUERY)
            rows = cursor.fetchall()
            if rows and rows[0][0] != seen:
                seen = rows[0][0]
                yield rows
            select.select([connection], [], [], seconds)
            connection.poll()
            connection.notifies.clear()


if __name__ == "__main__":
    for top in follow(sys.argv[1]):
        for publication_id, customer_id, probability in top:
            print(publication_id, customer_id, f"{probability:.4f}")
