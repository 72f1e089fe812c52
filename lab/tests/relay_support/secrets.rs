//! Certificates and credentials that are generated for a test.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// A certificate authority with one certificate for the server and one for a client, as PEM files in a directory.
pub struct Certificates {
    pub dir: PathBuf,
}

impl Certificates {
    /// Writes `ca.pem`, `server.pem`, `server.key`, `client.pem` and `client.key`.
    pub fn write(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        for name in ["server", "client"] {
            let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
            fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Certificates { dir: dir.to_owned() }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    /// The server's `tls` block.
    pub fn server_block(&self, more: &str) -> String {
        let (ca, cert, key) = (self.path("ca.pem"), self.path("server.pem"), self.path("server.key"));
        format!("tls {{ ca_file: {ca:?}, cert_file: {cert:?}, key_file: {key:?}, {more} }}")
    }
}

fn token(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> String {
    let encoded = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({
        "jti": "X", "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(), "name": "n", "nats": nats
    });
    let signed = format!(
        "{}.{}",
        encoded(json!({"typ": "JWT", "alg": "ed25519-nkey"})),
        encoded(claims)
    );
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// An operator with one account that has JetStream.
pub struct Operator {
    account: KeyPair,
    /// The server's configuration.
    pub config: String,
}

impl Operator {
    pub fn new() -> Self {
        let (operator, system, account) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
        let limits = |jetstream: i64| {
            json!({ "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
                "leaf": -1, "mem_storage": jetstream, "disk_storage": jetstream, "streams": jetstream, "consumer": jetstream })
        };
        let of_account = |key: &KeyPair, jetstream| {
            let claims = json!({ "type": "account", "version": 2, "limits": limits(jetstream) });
            format!("  {}: {:?}\n", key.public_key(), token(&operator, key, claims))
        };
        let config = format!(
            "operator: {:?}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n{}{}}}\n",
            token(&operator, &operator, json!({ "type": "operator", "version": 2 })),
            system.public_key(),
            of_account(&system, 0),
            of_account(&account, -1),
        );
        Operator { account, config }
    }

    /// Content of a `.creds` file for a user of the account (`known`), or of an account that the server does not know.
    pub fn credentials(&self, known: bool) -> String {
        let user = KeyPair::new_user();
        let claims =
            json!({ "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
        let jwt = match known {
            true => token(&self.account, &user, claims),
            false => token(&KeyPair::new_account(), &user, claims),
        };
        let seed = user.seed().unwrap();
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}
