//! Changes per second that one process decodes to native rows: driven by scripts/bench.sh.

use std::{fs, time::Instant};

use walcast_client::{Client, Start};

type Failure = Box<dyn std::error::Error>;

/// Of this process, in seconds: utime and stime of proc(5), in ticks of 10 ms.
fn cpu() -> Result<f64, Failure> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, rows, rounds] = &arguments[..] else { return Err("address, rows, rounds".into()) };
    let client = Client::new(address)?;
    for _ in 0..rounds.parse()? {
        let (start, used) = (Instant::now(), cpu()?);
        let mut stream =
            client.subscription().tables(["public.bench"]).start(Start::Earliest).stop_at_tail().subscribe()?;
        let (mut changes, mut values) = (0usize, 0usize);
        while let Some(tx) = stream.next().await.transpose()? {
            for change in &tx {
                changes += 1;
                values += change.after()?.map_or(0, |row| row.len());
            }
        }
        let (wall, used) = (start.elapsed().as_secs_f64(), cpu()? - used);
        assert_eq!((changes, values), (rows.parse()?, changes * 5));
        let (per_second, per_cpu) = (changes as f64 / wall, changes as f64 / used);
        println!("Rust, from the hub {per_second:12.0} changes/s, {per_cpu:12.0} per second of the client's CPU");
    }
    Ok(())
}
