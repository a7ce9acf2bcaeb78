//! HTTP as an attacker writes it: bytes on a socket, with nothing checked on the way out.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A request; what stands in it goes out as it is.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) target: Vec<u8>,
    /// Whole header lines, each with its CRLF.
    pub(crate) headers: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn new(method: &'static str, target: impl Into<Vec<u8>>) -> Self {
        Self {
            method,
            target: target.into(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.extend_from_slice(name.as_bytes());
        self.headers.extend_from_slice(b": ");
        self.headers.extend_from_slice(value.as_ref());
        self.headers.extend_from_slice(b"\r\n");
        self
    }

    pub(crate) fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.header("content-type", content_type)
    }

    /// Sends it to a base URL. `None`: the server closed the connection without a word, which is an
    /// answer to what is not HTTP.
    pub(crate) async fn send(&self, url: &str) -> Option<Answer> {
        let answer = tokio::time::timeout(PATIENCE, self.exchange(url)).await;
        answer.unwrap_or_else(|_| panic!("no answer within {PATIENCE:?} to {self}"))
    }

    async fn exchange(&self, url: &str) -> Option<Answer> {
        let host = url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).await.unwrap();
        let mut request = Vec::with_capacity(self.body.len() + 512);
        request.extend_from_slice(self.method.as_bytes());
        request.push(b' ');
        request.extend_from_slice(&self.target);
        request.extend_from_slice(b" HTTP/1.1\r\nhost: ");
        request.extend_from_slice(host.as_bytes());
        request.extend_from_slice(b"\r\nconnection: close\r\n");
        request.extend_from_slice(&self.headers);
        request
            .extend_from_slice(format!("content-length: {}\r\n\r\n", self.body.len()).as_bytes());
        request.extend_from_slice(&self.body);
        // A server that has refused the request may close before it has read all of it.
        let (mut reading, mut writing) = stream.split();
        let sending = async {
            let _refused_early = writing.write_all(&request).await;
        };
        let mut raw = Vec::new();
        let receiving = async {
            let mut chunk = [0; 4 * 1024];
            while let Ok(read @ 1..) = reading.read(&mut chunk).await {
                raw.extend_from_slice(&chunk[..read]);
            }
        };
        futures::join!(sending, receiving);
        parse(&raw)
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cut = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let short: String = text.chars().take(600).collect();
            format!("{short:?} ({} bytes)", bytes.len())
        };
        let (target, headers) = (cut(&self.target), cut(&self.headers));
        write!(
            f,
            "{} {target}\n  headers {headers}\n  body {}",
            self.method,
            cut(&self.body)
        )
    }
}

fn parse(raw: &[u8]) -> Option<Answer> {
    let end = raw.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&raw[..end]).to_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = String::from_utf8_lossy(&raw[end + 4..]).into_owned();
    Some(Answer { status, head, body })
}

impl Answer {
    /// The value of a header, in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(own, _)| *own == name)
            .map(|(_, value)| value)
    }
}
