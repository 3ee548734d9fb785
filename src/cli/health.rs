//! `walcast health`: one GET to the hub's own HTTP port, so that an image needs no curl. It asks HTTP rather than
//! gRPC health, because that port has neither TLS nor tokens to know about.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{args::HealthArgs, error::Error};

/// The whole exchange.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read, bytes.
const LONGEST_ANSWER: u64 = 16 << 10;

pub async fn run(args: &HealthArgs) -> Result<(), Error> {
    if args.http == "off" {
        return Err(Error::Failed("the hub runs without an HTTP endpoint (http.listen = \"off\")".to_owned()));
    }
    let address = reachable(&args.http);
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let answer = timeout(PATIENCE, get(&address, path)).await;
    let answer = answer.map_err(|_| Error::Failed(format!("http://{address}{path} did not answer in 5 s")))?;
    let answer = answer.map_err(Error::io(format!("http://{address}{path}")))?;
    match status(&answer) {
        Some(200) => Ok(()),
        Some(code) => {
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
            Err(Error::Failed(format!("http://{address}{path} answered {code}: {body}")))
        }
        None => Err(Error::Failed(format!("http://{address}{path} does not speak HTTP"))),
    }
}

/// An address to listen on everywhere is reached on loopback.
fn reachable(listen: &str) -> String {
    match listen.parse::<std::net::SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => match address {
            std::net::SocketAddr::V4(_) => format!("127.0.0.1:{}", address.port()),
            std::net::SocketAddr::V6(_) => format!("[::1]:{}", address.port()),
        },
        _ => listen.to_owned(),
    }
}

async fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn status(answer: &str) -> Option<u16> {
    let mut words = answer.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn server(answer: &'static str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; 1024];
            let n = stream.read(&mut request).await.expect("a request");
            assert!(request[..n].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.expect("answered");
        });
        address
    }

    #[tokio::test]
    async fn only_200_is_well() {
        let ask = |http| async move { run(&HealthArgs { http, ready: true }).await };
        ask(server("HTTP/1.1 200 OK\r\n\r\nok").await).await.expect("well");
        let error = ask(server("HTTP/1.1 503 Service Unavailable\r\n\r\nstarting").await).await.expect_err("not well");
        assert!(error.to_string().ends_with("answered 503: starting"), "{error}");
        let error = ask(server("SSH-2.0").await).await.expect_err("not HTTP");
        assert!(error.to_string().contains("does not speak HTTP"), "{error}");
    }

    #[test]
    fn everywhere_is_reached_on_loopback() {
        assert_eq!(reachable("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(reachable("[::]:8080"), "[::1]:8080");
        assert_eq!(reachable("hub:8080"), "hub:8080");
    }
}
