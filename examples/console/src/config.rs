//! Settings, from environment variables or the command line.

use std::net::SocketAddr;

use clap::Parser;

use crate::host;
use crate::token::Token;

/// Shows what pg_jetstream does in one database.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Config {
    /// Database with the extension; the user needs the role jetstream_reader, with a token jetstream_admin as well
    #[arg(long, env, default_value = "postgresql://localhost/postgres", hide_env_values = true)]
    pub database_url: String,
    /// Address to listen on
    #[arg(long, env, default_value = "127.0.0.1:8090")]
    pub http_listen: SocketAddr,
    /// Names under which a browser may ask for it, separated by commas, without ports; localhost, loopback addresses and the
    /// address to listen on are always among them
    #[arg(long, env, default_value = "")]
    pub allowed_hosts: host::List,
    /// What lets one see the bodies of dead letters, redrive them, pause and resume; at least 16 characters. Without it
    /// the page shows and changes nothing else
    #[arg(long, env, hide_env_values = true)]
    pub console_token: Option<Token>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_token_is_refused() {
        let parse = |token: &str| Config::try_parse_from(["console", "--console-token", token]);
        assert!(parse("0123456789abcde").is_err());
        assert!(parse("0123456789abcdef").is_ok());
    }
}
