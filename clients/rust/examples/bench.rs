//! Iterates a table's changes, decoded to native rows, as often as it is told to: see clients/README.md.

use std::{io::BufRead, time::Instant};

use walcast_client::{Client, Start};

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, table] = &arguments[..] else { return Err("address, table".into()) };
    let client = Client::new(address)?;
    println!("{{\"ready\": \"Rust\"}}");
    for order in std::io::stdin().lock().lines() {
        let order = order?;
        if order != "rows" {
            return Err(format!("not known: {order}").into());
        }
        let began = Instant::now();
        let mut stream = client.subscription().tables([table]).start(Start::Earliest).stop_at_tail().subscribe()?;
        let (mut changes, mut nulls, mut digest) = (0usize, 0usize, 0u32);
        while let Some(tx) = stream.next().await.transpose()? {
            for change in &tx {
                let row = change.after()?.ok_or("a change without a row")?;
                let id = row["id"].as_i64().ok_or("no id")?;
                changes += 1;
                digest = digest.wrapping_mul(31).wrapping_add(id as u32);
                nulls += usize::from(row["note"].is_null());
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        println!("{{\"changes\": {changes}, \"nulls\": {nulls}, \"digest\": {digest}, \"seconds\": {seconds:.6}}}");
    }
    Ok(())
}
