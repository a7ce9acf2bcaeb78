//! Each verb of the fault proxy against a plain TCP echo.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use e2e::Proxy;

/// Longer than any byte needs on the loopback of a busy machine.
const QUIET: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(10);

/// Answers every byte with the same byte plus `shift`, on threads that end with the test process.
fn echo(shift: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read) = stream.read(&mut buffer)
                    && read > 0
                {
                    let answer: Vec<u8> = buffer[..read].iter().map(|byte| byte + shift).collect();
                    if stream.write_all(&answer).is_err() {
                        break;
                    }
                }
            });
        }
    });
    addr
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.addr()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn answers(mut stream: &TcpStream, sent: u8) -> std::io::Result<u8> {
    stream.write_all(&[sent])?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

#[track_caller]
fn assert_reset(stream: &TcpStream) {
    let err = answers(stream, 1).unwrap_err();
    let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    assert!(kinds.contains(&err.kind()), "{err:?}");
}

#[track_caller]
fn assert_quiet(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(QUIET)).unwrap();
    let err = stream.read(&mut [0]).unwrap_err();
    let kinds = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
    assert!(kinds.contains(&err.kind()), "{err:?}");
    stream.set_read_timeout(Some(SOON)).unwrap();
}

#[test]
fn bytes_pass_both_ways_and_a_goodbye_too() {
    let proxy = Proxy::start(echo(0)).unwrap();
    let mut stream = connect(&proxy);
    let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut writer = stream.try_clone().unwrap();
    let all = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&all).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == sent, "{} of {} bytes", back.len(), sent.len());
}

#[test]
fn a_url_goes_through_the_proxy_with_all_else_as_it_was() {
    let proxy = Proxy::start(echo(0)).unwrap();
    let port = proxy.addr().port();
    assert_eq!(
        proxy.url("mysql://u:p%2F@localhost:3306/db?ssl-mode=REQUIRED"),
        format!("mysql://u:p%2F@127.0.0.1:{port}/db?ssl-mode=REQUIRED")
    );
    assert_eq!(
        proxy.url("amqp://admin:pw@mq/vhost"),
        format!("amqp://admin:pw@127.0.0.1:{port}/vhost")
    );
}

#[test]
fn a_cut_resets_the_connections_there_are_and_accepts_new_ones() {
    let proxy = Proxy::start(echo(0)).unwrap();
    let streams = [connect(&proxy), connect(&proxy)];
    for stream in &streams {
        assert_eq!(answers(stream, 7).unwrap(), 7);
    }
    assert_eq!(proxy.connections(), 2);
    proxy.cut();
    assert_eq!(proxy.connections(), 0);
    streams.iter().for_each(assert_reset);
    assert_eq!(answers(&connect(&proxy), 8).unwrap(), 8);
}

#[test]
fn a_closed_proxy_resets_and_refuses_until_it_is_opened() {
    let proxy = Proxy::start(echo(0)).unwrap();
    let stream = connect(&proxy);
    answers(&stream, 1).unwrap();
    for _ in 0..3 {
        proxy.close();
        assert_reset(&stream);
        let err = TcpStream::connect(proxy.addr()).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::ConnectionRefused);
        proxy.open();
        assert_eq!(answers(&connect(&proxy), 2).unwrap(), 2);
    }
}

#[test]
fn a_stalled_proxy_keeps_connections_and_passes_no_byte_until_it_resumes() {
    let proxy = Proxy::start(echo(0)).unwrap();
    let mut old = connect(&proxy);
    answers(&old, 1).unwrap();
    proxy.stall();
    let mut new = connect(&proxy);
    for stream in [&mut old, &mut new] {
        stream.write_all(&[9]).unwrap();
        assert_quiet(stream);
    }
    proxy.resume();
    for stream in [&mut old, &mut new] {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [9], "what was sent meanwhile arrives");
    }
}

#[test]
fn a_proxy_that_stalls_answers_still_passes_what_the_client_sends() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
    let mut client = connect(&proxy);
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    proxy.stall_answers();
    let mut byte = [0];
    client.write_all(&[3]).unwrap();
    server.read_exact(&mut byte).unwrap();
    server.write_all(&[4]).unwrap();
    assert_quiet(&client);
    proxy.resume();
    client.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [4]);
}

#[test]
fn a_limited_proxy_takes_its_time() {
    let proxy = Proxy::start(echo(0)).unwrap();
    let mut stream = connect(&proxy);
    answers(&stream, 1).unwrap();
    proxy.limit(Some(20_000));
    let start = Instant::now();
    stream.write_all(&[0; 10_000]).unwrap();
    stream.read_exact(&mut [0; 10_000]).unwrap();
    assert!(start.elapsed() > Duration::from_millis(400));
    proxy.limit(None);
    assert_eq!(answers(&stream, 5).unwrap(), 5);
}

#[test]
fn a_connection_is_reset_after_so_many_more_bytes_from_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
    let mut client = connect(&proxy);
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    let mut first = [0; 10];
    client.write_all(&first).unwrap();
    server.read_exact(&mut first).unwrap();
    proxy.cut_after(100);
    client.write_all(&[1; 60]).unwrap();
    server.read_exact(&mut [0; 60]).unwrap();
    client.write_all(&[2; 60]).unwrap();
    // A reset may overtake what was sent before it: at most the quota arrives.
    let mut arrived = 0;
    while let Ok(read) = server.read(&mut [0; 60])
        && read > 0
    {
        arrived += read;
    }
    assert!(arrived <= 40, "{arrived}");
    assert_reset(&client);
    // A later connection is left alone.
    let mut later = connect(&proxy);
    let (mut server, _) = listener.accept().unwrap();
    later.write_all(&[3; 200]).unwrap();
    server.read_exact(&mut [0; 200]).unwrap();
}

#[test]
fn the_byte_after_a_marker_is_spoilt_and_no_other() {
    let proxy = Proxy::start(echo(0)).unwrap();
    let mut stream = connect(&proxy);
    proxy.spoil_after(Some(b"poison"));
    let mut sent = |bytes: &[u8]| {
        stream.write_all(bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).unwrap();
        back
    };
    assert_eq!(sent(b"a poiso_ and a poi"), b"a poiso_ and a poi");
    assert_eq!(sent(b"son\x01rest poison"), b"son\xferest poison");
    assert_eq!(sent(b"\x02poisopoison\x03"), b"\xfdpoisopoison\xfc");
}

#[test]
fn new_connections_go_to_the_new_upstream() {
    let proxy = Proxy::start(echo(0)).unwrap();
    let old = connect(&proxy);
    assert_eq!(answers(&old, 1).unwrap(), 1);
    proxy.set_upstream(echo(1));
    assert_eq!(answers(&old, 1).unwrap(), 1);
    assert_eq!(answers(&connect(&proxy), 1).unwrap(), 2);
}

#[test]
fn a_dead_upstream_resets_the_client_and_a_dropped_proxy_is_gone() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = free.local_addr().unwrap();
    drop(free);
    let proxy = Proxy::start(dead).unwrap();
    assert_reset(&connect(&proxy));
    let addr = proxy.addr();
    drop(proxy);
    TcpStream::connect(addr).unwrap_err();
}
