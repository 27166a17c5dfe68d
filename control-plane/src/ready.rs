//! `heddle-control-plane ready`: asks another control plane whether it is ready. For `helm test` and for people; the image
//! holds no other program.

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// One try.
const TRY: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read.
const LONGEST: u64 = 4096;

/// Asks until `admin` says that it is ready and all of `connect` take a connection, for so long.
///
/// # Errors
/// With what the last try met.
pub fn wait(admin: &str, connect: &[String], timeout: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let error = match ask(admin, connect) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if began.elapsed() + PAUSE >= timeout {
            return Err(error);
        }
        std::thread::sleep(PAUSE);
    }
}

fn ask(admin: &str, connect: &[String]) -> anyhow::Result<()> {
    let mut stream = open(admin)?;
    let question = format!("GET /ready HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let mut answer = String::new();
    let read = stream.take(LONGEST).read_to_string(&mut answer);
    read.with_context(|| format!("{admin} did not answer"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) != Some("200") {
        let said = if body.is_empty() { head.lines().next().unwrap_or("nothing") } else { body.trim() };
        anyhow::bail!("{admin} says: {said}");
    }
    connect.iter().try_for_each(|address| open(address).map(drop))
}

fn open(address: &str) -> anyhow::Result<TcpStream> {
    let found = address.to_socket_addrs().with_context(|| format!("{address} is not known"))?;
    let mut last = anyhow!("{address} has no address");
    for one in found {
        match TcpStream::connect_timeout(&one, TRY) {
            Ok(stream) => {
                stream.set_read_timeout(Some(TRY))?;
                stream.set_write_timeout(Some(TRY))?;
                return Ok(stream);
            }
            Err(error) => last = anyhow!("{address} ({one}): {error}"),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one connection after another like this.
    fn serve(answers: Vec<&'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                // All of it: what is left unread would turn the answer's end into a reset.
                let mut question = Vec::new();
                while !question.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    question.extend(byte);
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    const READY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nready\n";
    const NOT_YET: &str =
        "HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready: the objects are still being read\n";

    #[test]
    fn one_that_becomes_ready_is_waited_for() {
        let address = serve(vec![NOT_YET, READY]);
        wait(&address, &[], Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn one_that_is_not_ready_is_quoted_and_one_that_takes_no_connection_is_named() {
        let error = wait(&serve(vec![NOT_YET]), &[], Duration::ZERO).unwrap_err().to_string();
        assert!(error.ends_with("says: not ready: the objects are still being read"), "{error}");
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let error = wait(&serve(vec![READY]), std::slice::from_ref(&gone), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains(&gone), "{error}");
    }
}
