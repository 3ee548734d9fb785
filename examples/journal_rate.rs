//! How fast the journal takes blocks and gives them back: `cargo run --release --example journal_rate -- DIR [MIB]`.
//! One appender, blocks of 27 KiB, as ingest makes them when it is behind.

use std::{error::Error, path::PathBuf, time::Instant};

use walcast::{
    feed::{Feed, Fetched, Start},
    journal::{Journal, Options, Record},
    lsn::Lsn,
    model::{Lineage, Position, Transaction},
    wire::block::BlockBuilder,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("a directory")?);
    let mib: u64 = args.next().map_or(Ok(2048), |text| text.parse())?;
    let lineage = Lineage { system_identifier: 1, timeline: 1, history: String::new(), epoch: 0, switch_lsn: Lsn(0) };
    let opening = Instant::now();
    let (journal, mut appender, _) = Journal::open(Options::new(&dir))?;
    println!("open: {:.1} ms, {} bytes", opening.elapsed().as_secs_f64() * 1e3, journal.window().bytes);
    appender.append(Record::Lineage(lineage.clone())).await?;
    let start = Position::new(lineage.id(), Lsn(1 << 20));
    appender.append(Record::Mark(start)).await?;

    let mut builder = BlockBuilder::new(start);
    let content = vec![7u8; 27 << 10];
    let (mut lsn, mut building, mut bytes) = (start.lsn.0, 0.0, 0);
    let begun = Instant::now();
    while bytes < mib << 20 {
        let making = Instant::now();
        lsn += 1 << 16;
        let transaction =
            Transaction { commit_lsn: Lsn(lsn), xid: lsn >> 16, commit_time: lsn as i64, ..Default::default() };
        builder.begin(transaction, 0);
        builder.message("m", &content, Lsn(lsn))?;
        builder.commit(Position::new(lineage.id(), Lsn(lsn + 8)));
        let block = builder.seal();
        bytes += block.message().len() as u64;
        building += making.elapsed().as_secs_f64();
        appender.append(Record::Block(block)).await?;
    }
    appender.flush().await?;
    let took = begun.elapsed().as_secs_f64();
    let rate = |seconds: f64| bytes as f64 / seconds / 1e6;
    println!("append: {:.0} MB/s durable ({:.2} s, of which {building:.2} s made blocks)", rate(took), took);

    let tiny = Instant::now();
    let mut syncs = 0;
    while tiny.elapsed().as_secs() < 3 {
        lsn += 64;
        builder.begin(Transaction { commit_lsn: Lsn(lsn), xid: syncs + 9, ..Default::default() }, 0);
        builder.commit(Position::new(lineage.id(), Lsn(lsn + 8)));
        appender.append(Record::Block(builder.seal())).await?;
        appender.flush().await?;
        syncs += 1;
    }
    println!("one small transaction at a time: {:.0} syncs/s", syncs as f64 / tiny.elapsed().as_secs_f64());
    appender.shutdown().await?;
    drop(journal);

    let opening = Instant::now();
    let (journal, appender, recovered) = Journal::open(Options::new(&dir))?;
    println!("reopen: {:.1} ms, {} bytes", opening.elapsed().as_secs_f64() * 1e3, journal.window().bytes);
    assert_eq!(recovered.next_block, journal.marks().borrow().next_block);
    for readers in [1, 16] {
        let reading = Instant::now();
        let tasks: Vec<_> = (0..readers)
            .map(|_| {
                let journal = journal.clone();
                tokio::spawn(async move {
                    let mut cursor = journal.locate(Start::Earliest).await?;
                    let mut bytes = 0;
                    while let Fetched::Block(block) = journal.fetch(&mut cursor).await? {
                        bytes += block.message().len();
                    }
                    Ok::<_, walcast::feed::Error>(bytes)
                })
            })
            .collect();
        let mut total = 0;
        for task in tasks {
            total += task.await??;
        }
        let rate = total as f64 / reading.elapsed().as_secs_f64() / 1e6;
        println!("cold read, {readers} readers from the start: {rate:.0} MB/s together");
    }
    appender.shutdown().await?;
    Ok(())
}
