"""Take over new predictions as soon as they are published: python follow_predictions.py URL

URL is postgresql://… of a role with the rights of nightshift_reader.
"""

import select
import sys
from collections.abc import Iterator
from contextlib import closing

import psycopg2

QUERY = """
select p.publication_id, c.customer_id, c.churn_probability
from predictions.publications as p
inner join predictions.churn as c
    on c.as_of = p.as_of and c.publication_id = p.publication_id
where p.use_case = 'churn' and c.as_of = (select max(as_of) from predictions.publications
                                          where use_case = 'churn')
    and c.band = 'high'
order by c.churn_probability desc
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
