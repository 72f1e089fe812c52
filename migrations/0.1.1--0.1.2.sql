-- DDL from 0.1.1 to 0.1.2. Functions, views, comments and rights come from sql/.

-- What a worker reports has three more arguments.
drop function if exists jetstream.rule_nats_consumer_update_stats(text, text, bigint, bigint, bigint, numeric, bigint, boolean);

-- generated statements
