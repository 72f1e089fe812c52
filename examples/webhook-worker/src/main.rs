//! Makes the HTTP calls of webhooks.
fn main() {}
