use super::*;
use crate::error::ErrorKind;
use crate::tasks::Pool;
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

const CONTENT: &str = "0123456789";

/// Serves `GET` and `HEAD` of `/dir/a%20b` on loopback, with or without ranges, until it is dropped.
struct Server {
    address: SocketAddr,
    serving: Option<BoxFuture<'static, Result<()>>>,
    _pool: Pool,
}

impl Server {
    fn start(ranges: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let pool = Pool::new("test-server", 1).unwrap();
        let serving = pool.run(Priority::Foreground, move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let lines = request(&stream);
                if lines.is_empty() {
                    break; // `drop` below
                }
                answer(stream, &lines, ranges);
            }
            Ok(())
        });
        Self { address, serving: Some(Box::pin(serving)), _pool: pool }
    }

    fn place(&self) -> Place {
        let stores = Stores::new(disk(), Remote::new());
        stores.open(&format!("http://{}/dir", self.address), &[]).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(TcpStream::connect(self.address)); // a connection without a request ends it
        let served = block_on(self.serving.take().unwrap());
        assert!(std::thread::panicking() || served.is_ok(), "{served:?}");
    }
}

fn request(stream: &TcpStream) -> Vec<String> {
    BufReader::new(stream)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .map(|line| line.to_ascii_lowercase())
        .collect()
}

fn answer(mut stream: TcpStream, lines: &[String], ranges: bool) {
    let common = "last-modified: Sun, 22 Nov 2026 10:00:00 GMT\r\nconnection: close\r\n";
    let range = lines.iter().find_map(|line| line.strip_prefix("range: bytes="));
    let size = CONTENT.len();
    let (status, extra, body) = match range.filter(|_| ranges) {
        _ if !lines[0].contains(" /dir/a%20b ") => ("404 Not Found", String::new(), ""),
        None => ("200 OK", String::new(), CONTENT),
        Some(range) => {
            let (start, end) = range.split_once('-').unwrap();
            let (start, end) = match (start.parse::<usize>(), end.parse::<usize>()) {
                (Ok(start), Ok(end)) => (start, end.min(size - 1)),
                (Err(_), Ok(last)) => (size - last.min(size), size - 1),
                _ => unreachable!("the client asks for both ends, or for the last bytes"),
            };
            if start >= size {
                ("416 Range Not Satisfiable", String::new(), "")
            } else {
                let extra = format!("content-range: bytes {start}-{end}/{size}\r\n");
                ("206 Partial Content", extra, &CONTENT[start..=end])
            }
        }
    };
    let length = body.len();
    let mut head = format!("HTTP/1.1 {status}\r\n{common}{extra}content-length: {length}\r\n\r\n");
    if !lines[0].starts_with("head ") {
        head.push_str(body);
    }
    stream.write_all(head.as_bytes()).unwrap();
}

#[test]
fn a_web_server_is_read_by_ranges() {
    let server = Server::start(true);
    let place = server.place();
    let key = place.key("a b");
    let store = place.store();
    block_on(async {
        assert_eq!(whole(&**store, &key).await, CONTENT);
        let get = |span| store.get(&key, span, Priority::Restore);
        assert_eq!(get(Span::Range { offset: 2, len: 3 }).await.unwrap(), "234");
        assert_eq!(get(Span::Suffix { len: 2 }).await.unwrap(), "89");
        let read = store.read(&key, 1, regions(&[2, 3]), Priority::Restore).await.unwrap();
        assert_eq!((&read[0][..], &read[1][..]), (&b"12"[..], &b"345"[..]));
        // Beyond the end: the refusal (416) does not say why, one more request does.
        let error = get(Span::Range { offset: 20, len: 1 }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        let error = store.head(&place.key("none")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    });
}

#[test]
fn a_web_server_without_ranges_is_told_to_lack_them() {
    let server = Server::start(false);
    let place = server.place();
    let key = place.key("a b");
    block_on(async {
        let span = Span::Range { offset: 2, len: 3 };
        let error = place.store().get(&key, span, Priority::Restore).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    });
}

#[test]
fn a_status_says_what_the_caller_can_do() {
    let kind = |status: &str| {
        let text = format!("Server returned non-2xx status code: {status}: body");
        let theirs = object_store::Error::Generic { store: "test", source: text.into() };
        super::super::object::explain(theirs).kind()
    };
    assert_eq!(kind("501 Not Implemented"), ErrorKind::Unsupported);
    assert_eq!(kind("405 Method Not Allowed"), ErrorKind::Unsupported);
    assert_eq!(kind("400 Bad Request"), ErrorKind::Invalid);
    assert_eq!(kind("429 Too Many Requests"), ErrorKind::Unavailable);
    assert_eq!(kind("503 Slow Down"), ErrorKind::Unavailable);
    assert_eq!(kind(""), ErrorKind::Unavailable);
}
