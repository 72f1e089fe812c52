//! Files that a connection names: certificates, keys, credentials. Whoever may change a connection chooses the path, so a
//! file is read only if it is a regular one of bounded size, and what is wrong with a path is written to the log alone.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::RootCertStore;
use rustls::client::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::oneshot;
use tracing::warn;

use crate::message::{Auth, ConnectionSpec};

/// Most bytes of a file.
const MAX_BYTES: u64 = 1_048_576;

/// What the files of a connection hold.
pub(super) struct Files {
    /// The connection's own way of TLS; none for that of the client.
    pub(super) tls: Option<ClientConfig>,
    /// Contents of the credentials file.
    pub(super) credentials: Option<String>,
}

/// Why a file cannot be used.
struct Unusable {
    /// The same whatever is wrong with the path, so that it does not say which files there are.
    shown: String,
    /// For the log.
    reason: String,
}

/// Most reads of a connection's files at a time: one that hangs cannot be ended.
const MAX_READS: usize = 4;

/// How many reads there are of each connection's files.
static READING: Mutex<BTreeMap<Arc<str>, usize>> = Mutex::new(BTreeMap::new());

/// What was last written to the log of each connection's files: the same is not written with every attempt.
static LOGGED: Mutex<BTreeMap<Arc<str>, String>> = Mutex::new(BTreeMap::new());

/// Writes to the log what is wrong with a connection's files, or that nothing is, if that is new.
fn log(connection: &Arc<str>, wrong: Option<String>) {
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    match wrong {
        None => drop(logged.remove(connection)),
        Some(line) if logged.get(connection) == Some(&line) => {}
        Some(line) => {
            warn!(target: "pg_jetstream", "{line}");
            logged.insert(connection.clone(), line);
        }
    }
}

struct Turn(Arc<str>);

impl Turn {
    fn take(connection: &Arc<str>) -> Option<Turn> {
        let mut reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
        let reads = reading.entry(connection.clone()).or_default();
        (*reads < MAX_READS).then(|| {
            *reads += 1;
            Turn(connection.clone())
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
        match reading.get_mut(&self.0) {
            Some(reads) if *reads > 1 => *reads -= 1,
            _ => drop(reading.remove(&self.0)),
        }
    }
}

/// Reads the files that a connection names.
///
/// Errors: a text that does not depend on what is wrong with a path.
pub(super) async fn read(spec: &ConnectionSpec) -> Result<Files, String> {
    let (tls, by_file) = (&spec.tls, matches!(spec.auth, Auth::CredentialsFile(_)));
    if !by_file && tls.ca_file.is_none() && tls.cert_file.is_none() && tls.key_file.is_none() {
        return Ok(Files {
            tls: None,
            credentials: None,
        });
    }
    let Some(turn) = Turn::take(&spec.name) else {
        return Err("earlier reads of the files it names have not ended".to_owned());
    };
    let (sender, read) = oneshot::channel();
    let theirs = spec.clone();
    let thread = std::thread::Builder::new().name("jetstream files".to_owned());
    let started = thread.spawn(move || {
        let files = read_all(&theirs);
        drop(turn);
        let _ = sender.send(files);
    });
    match (started, read.await) {
        (Ok(_), Ok(Ok(files))) => {
            log(&spec.name, None);
            Ok(files)
        }
        (Ok(_), Ok(Err(Unusable { shown, reason }))) => {
            log(&spec.name, Some(reason));
            Err(shown)
        }
        _ => Err("the files it names cannot be read".to_owned()),
    }
}

/// Each file is read and understood before the next one: which one is refused must not say what is in another.
fn read_all(spec: &ConnectionSpec) -> Result<Files, Unusable> {
    let tls = &spec.tls;
    let credentials = match &spec.auth {
        Auth::CredentialsFile(path) => Some(Named::read("credentials", path)?.credentials()?),
        _ => None,
    };
    let roots = match &tls.ca_file {
        Some(path) => Some(Named::read("CA", path)?.roots()?),
        None => None,
    };
    let identity = match (&tls.cert_file, &tls.key_file) {
        (Some(certificate), Some(key)) => {
            let chain = Named::read("certificate", certificate)?.certificates()?;
            let key = Named::read("key", key)?;
            Some((chain, key))
        }
        (None, None) => None,
        _ => {
            return Err(Unusable {
                shown: "a client certificate needs both its file and its key's".to_owned(),
                reason: "a client certificate or its key is missing".to_owned(),
            });
        }
    };
    if roots.is_none() && identity.is_none() {
        return Ok(Files { tls: None, credentials });
    }
    let roots = roots.unwrap_or_else(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    });
    let builder = ClientConfig::builder().with_root_certificates(Arc::new(roots));
    let tls = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let secret = PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|error| key.unusable(&error))?;
            let with_key = builder.with_client_auth_cert(chain, secret);
            with_key.map_err(|error| key.unusable(&error))?
        }
    };
    Ok(Files {
        tls: Some(tls),
        credentials,
    })
}

/// A file that was read.
struct Named<'a> {
    what: &'static str,
    path: &'a str,
    bytes: Vec<u8>,
}

impl<'a> Named<'a> {
    fn read(what: &'static str, path: &'a str) -> Result<Named<'a>, Unusable> {
        let mut named = Named {
            what,
            path,
            bytes: Vec::new(),
        };
        named.bytes = bytes_of(path).map_err(|error| named.unusable(&error))?;
        Ok(named)
    }

    fn unusable(&self, reason: &dyn Display) -> Unusable {
        let (what, path) = (self.what, self.path);
        Unusable {
            shown: format!(
                "{what} file {path} cannot be used: it must be a regular file of at most 1 MB that the server can \
                 read, in PEM or .creds format; see the server's log"
            ),
            reason: format!("{what} file {path} cannot be used: {reason}"),
        }
    }

    fn credentials(&self) -> Result<String, Unusable> {
        let text = String::from_utf8(self.bytes.clone()).map_err(|error| self.unusable(&error))?;
        async_nats::ConnectOptions::with_credentials(&text).map_err(|error| self.unusable(&error))?;
        Ok(text)
    }

    fn roots(&self) -> Result<RootCertStore, Unusable> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| self.unusable(&error))?;
        }
        Ok(roots)
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Unusable> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        match all {
            Ok(all) if !all.is_empty() => Ok(all),
            Ok(_) => Err(self.unusable(&"it holds no certificate")),
            Err(error) => Err(self.unusable(&error)),
        }
    }
}

/// The contents of a regular file of at most [`MAX_BYTES`].
fn bytes_of(path: &str) -> io::Result<Vec<u8>> {
    let refused = |reason: &str| Err(io::Error::other(reason));
    // A device may do something as soon as it is opened.
    if !std::fs::metadata(path)?.is_file() {
        return refused("not a regular file");
    }
    let file = open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return refused("not a regular file");
    }
    // What the kernel makes up has no size, and perhaps no end.
    if metadata.len() == 0 {
        return refused("empty, or not a file on a disk");
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_BYTES {
        true => refused("larger than 1 MB"),
        false => Ok(bytes),
    }
}

/// Opens without waiting, for a FIFO that has taken the file's place.
fn open(path: &str) -> io::Result<File> {
    const NONBLOCK: i32 = nix::libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path)
}
