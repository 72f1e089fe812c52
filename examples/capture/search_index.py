"""A search index that follows a table: python search_index.py SUBJECT WORD

Reads the table's changes from the beginning, keeps an index of words in memory, and prints the keys of the rows with
WORD whenever they change. Kept elsewhere, the index would store the position of each row beside it, as here.
"""
import asyncio
import json
import re
import sys

import nats

SERVER = "nats://localhost:4222"
STREAM = "postgres_replication"


def position(message):
    """Where the change stands among those of its table."""
    # Messages of version 0.1.1 have no epoch, and are older than those that have one.
    *epoch, place, number, _transaction, _salt = message.headers["Nats-Msg-Id"].split("-")
    return int(epoch[0]) if epoch else 0, place, int(number)


class Index:
    def __init__(self):
        self.rows = {}  # key -> (position, words; none once it is deleted)
        self.emptied = (0, "", 0)  # position of the last TRUNCATE

    def apply(self, kind, change, at):
        if kind == "Truncate":
            self.emptied = max(self.emptied, at)
        elif kind in ("Insert", "Update", "Delete"):
            row = change["old_tuple"] if kind == "Delete" else change["new_tuple"]
            key = row["id"]
            if key not in self.rows or self.rows[key][0] < at:
                text = " ".join(value for value in row.values() if value)
                self.rows[key] = (at, set() if kind == "Delete" else set(re.findall(r"\w+", text.lower())))

    def find(self, word):
        return sorted(key for key, (at, words) in self.rows.items() if at > self.emptied and word in words)


async def main(subject, word):
    client = await nats.connect(SERVER)
    messages = await client.jetstream().subscribe(subject, stream=STREAM, ordered_consumer=True)
    print("listening", flush=True)
    index, found = Index(), []
    async for message in messages.messages:
        [(kind, change)] = json.loads(message.data).items()
        index.apply(kind, change, position(message))
        if index.find(word) != found:
            found = index.find(word)
            print("found:", found, flush=True)


asyncio.run(main(*sys.argv[1:]))
