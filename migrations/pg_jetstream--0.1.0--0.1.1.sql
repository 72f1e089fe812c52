comment on column jetstream.capture_queue.head is 'What the messages have in common, as JSON: format, prefix, schema, table, and the database where the format names it';
