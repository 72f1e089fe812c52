//! pg_jetstream: write to the database and publish to NATS JetStream in one atomic act.
