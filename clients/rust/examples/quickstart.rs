//! The quick start of README.md.

use walcast_client::{Client, Error, Start};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:50051".into());
    let orders = Client::new(address)?.subscription().tables(["public.orders"]);
    let mut stream = orders.subscriber("billing").start(Start::Earliest).subscribe()?;
    while let Some(tx) = stream.next().await.transpose()? {
        for change in &tx {
            if let Some(row) = change.after()?.or(change.before()?) {
                println!("{} {} {row}", change.operation(), change.table());
            }
        }
    }
    Ok(())
}
