//! Tests of the NATS harness itself, which the other tests rely on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use lab::nats::NatsServer;

#[test]
fn a_server_comes_back_on_its_port_and_goes_with_its_directory() {
    let mut server = NatsServer::builder().extra("max_payload: 4096").start().unwrap();
    let (port, pid, dir) = (server.port(), server.pid(), server.dir().to_owned());
    assert!(server.monitor("/varz").unwrap().contains("\"max_payload\": 4096"));
    server.kill9().unwrap();
    server.restart().unwrap();
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    server.pause().unwrap();
    server.resume().unwrap();
    server.stop().unwrap();
    drop(server);
    assert!(!dir.exists());
}
