comment on column jetstream.capture_queue.head is 'What the messages have in common, as JSON: format, prefix, schema, table, and the database where the format names it';

-- Of a range, autovacuum is asked for a summary. It keeps 256 such requests and writes each further one to the server's log:
-- ranges of 128 pages are 2,000,000 rows of the history between two of its rounds.
drop index jetstream.history_outbox_id;
create index history_outbox_id on jetstream.history using brin (outbox_id)
    with (pages_per_range = 128, autosummarize = on);
comment on index jetstream.history_outbox_id is 'What became of one message; by block ranges, as ids come nearly in order: a tree would cost a third of the insert';
