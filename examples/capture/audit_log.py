"""An audit log: python audit_log.py FILE

Appends every change that is stored and was not read before to FILE, one JSON object a line, and ends. The durable
consumer remembers how far it came; a message counts as read once its line is on disk.
"""
import asyncio
import json
import os
import sys

import nats

SERVER = "nats://localhost:4222"
STREAM = "postgres_replication"


async def main(path):
    client = await nats.connect(SERVER)
    messages = await client.jetstream().pull_subscribe("postgres.>", durable="audit_logger", stream=STREAM)
    with open(path, "a", encoding="utf-8") as log:
        while True:
            try:
                batch = await messages.fetch(100, timeout=1)
            except asyncio.TimeoutError:  # nats.errors.TimeoutError is one too
                break
            for message in batch:
                [(kind, change)] = json.loads(message.data).items()
                entry = {"id": message.headers["Nats-Msg-Id"], "stored": str(message.metadata.timestamp), "kind": kind, **change}
                log.write(json.dumps(entry, ensure_ascii=False) + "\n")
            log.flush()
            os.fsync(log.fileno())
            for message in batch:
                await message.ack()
    await client.close()


asyncio.run(main(*sys.argv[1:]))
