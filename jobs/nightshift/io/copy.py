"""Binary COPY of Arrow batches into a table of the warehouse."""

import io
import queue
import threading
from collections.abc import Collection, Generator, Iterator

import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder
from pgpq.encoders import StringEncoderBuilder
from pgpq.schema import Jsonb
from psycopg2.extensions import connection as Connection
from psycopg2.sql import SQL, Identifier

MESSAGE_ROWS = 8_192
"""Rows that are encoded at a time; the encoder gives a message for each MiB of them."""
_MESSAGES_AHEAD = 16


def copy_batches(
    connection: Connection,
    table: str,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    *,
    jsonb: Collection[str] = (),
    frozen: bool = False,
) -> None:
    """Append the rows of ``batches`` to ``table``, in the open transaction.

    A thread makes and encodes the batches while this one sends them, so ``batches`` must not use
    the connection.

    Args:
        connection: whose transaction.
        table: schema-qualified name; it has columns of the schema's names and types.
        schema: of the batches.
        batches: an error that it raises is raised here; the transaction is then to be rolled back.
        jsonb: columns of text that are jsonb in the table.
        frozen: as rows that need no vacuum; the transaction must have made or emptied the table.
    """
    statement = SQL("copy {} ({}) from stdin (format binary, freeze {})").format(
        Identifier(*table.split(".")),
        SQL(", ").join(map(Identifier, schema.names)),
        SQL(str(frozen)),
    )
    messages = _Messages(_ahead(_encoded(schema, batches, jsonb)))
    with connection.cursor() as cursor:
        try:
            cursor.copy_expert(statement, messages)
        except Exception:
            # psycopg2 wraps what the batches raised in an error of its own
            if messages.fault is not None:
                raise messages.fault from None
            raise
        finally:
            messages.close()


def _encoded(
    schema: pa.Schema, batches: Iterator[pa.RecordBatch], jsonb: Collection[str]
) -> Iterator[bytes]:
    encoders = {
        field.name: StringEncoderBuilder.new_with_output(field, Jsonb())
        if field.name in jsonb
        else ArrowToPostgresBinaryEncoder.infer_encoder(field)
        for field in schema
    }
    encoder = ArrowToPostgresBinaryEncoder.new_with_encoders(schema, encoders)
    yield encoder.write_header()
    for batch in batches:
        for first in range(0, batch.num_rows, MESSAGE_ROWS):
            # the encoder keeps small batches back, and an empty message would be the end
            if message := encoder.write_batch(batch.slice(first, MESSAGE_ROWS)):
                yield message
    yield encoder.finish()


class _Messages(io.RawIOBase):
    """The file that psycopg2 reads: a message at a time, whatever size it asks for."""

    def __init__(self, messages: Generator[bytes]) -> None:
        self.fault: BaseException | None = None
        self._messages = messages

    def read(self, size: int = -1) -> bytes:
        try:
            return next(self._messages, b"")
        except BaseException as error:
            self.fault = error
            raise

    def close(self) -> None:
        self._messages.close()
        super().close()


def _ahead[T](items: Iterator[T]) -> Generator[T]:
    """The same items, made by a thread that works ahead of whoever takes them."""
    done = threading.Event()
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(_MESSAGES_AHEAD)

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not done.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if done.is_set():
                    return
            put((None, None))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        done.set()
        thread.join()
