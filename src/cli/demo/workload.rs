//! A small shop that is open while the demo runs: a few transactions a second, of every kind.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::{Client, Error, Transaction};

use crate::shutdown::Drain;

/// Time between two transactions.
const PACE: Duration = Duration::from_millis(300);
/// Orders above this number are archived away, so that the demo can run for ever.
const MOST_ORDERS: i64 = 40;

const SCHEMA: &str = "
    CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, city text NOT NULL);
    CREATE TABLE orders (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        customer_id int NOT NULL REFERENCES customers,
        status text NOT NULL DEFAULT 'new',
        total numeric(10, 2) NOT NULL,
        placed_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE order_items (
        order_id bigint REFERENCES orders ON DELETE CASCADE,
        line int,
        product text NOT NULL,
        quantity int NOT NULL,
        PRIMARY KEY (order_id, line)
    );
    ALTER TABLE orders REPLICA IDENTITY FULL;
";

const CUSTOMERS: &str = "INSERT INTO customers VALUES
    (1, 'Ada', 'London'), (2, 'Grace', 'New York'), (3, 'Edsger', 'Rotterdam'), (4, 'Barbara', 'Boston')";

/// A row for each transaction, so that none can be missing unnoticed.
const LEDGER: &str = "CREATE TABLE ledger (
    txid xid8 PRIMARY KEY DEFAULT pg_current_xact_id(), round int NOT NULL, at timestamptz NOT NULL DEFAULT now())";

const PRODUCTS: &[&str] = &["espresso beans", "paper filters", "kettle", "grinder", "cup", "scale"];
const STATUSES: &[(&str, &str)] =
    &[("new", "paid"), ("paid", "packed"), ("packed", "shipped"), ("shipped", "delivered")];

/// Creates the shop's tables and its first customers.
pub async fn create(client: &Client) -> Result<(), Error> {
    client.batch_execute(SCHEMA).await?;
    client.batch_execute(CUSTOMERS).await
}

/// Tables of a shop that keeps a ledger, as [`create_with_ledger`] makes them.
pub const TABLES: [&str; 4] = ["customers", "orders", "order_items", "ledger"];

/// Creates the shop's tables, empty, and the ledger.
pub async fn create_with_ledger(client: &Client) -> Result<(), Error> {
    client.batch_execute(SCHEMA).await?;
    client.batch_execute(LEDGER).await
}

/// The first customers come.
pub async fn open(client: &mut Client) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(CUSTOMERS).await?;
    enter(&transaction, -1).await?;
    transaction.commit().await
}

/// One transaction with its row in the ledger.
pub async fn trade(client: &mut Client, round: i32) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    act(&transaction, round).await?;
    enter(&transaction, round).await?;
    transaction.commit().await
}

async fn enter(transaction: &Transaction<'_>, round: i32) -> Result<(), Error> {
    transaction.execute("INSERT INTO ledger (round) VALUES ($1)", &[&round]).await.map(drop)
}

async fn act(transaction: &Transaction<'_>, round: i32) -> Result<(), Error> {
    match round % 4 {
        0 => place_order(transaction).await,
        1 | 2 => move_order(transaction).await,
        _ => tidy_up(transaction).await,
    }
}

/// Trades until told to stop.
pub async fn run(client: &mut Client, stop: &Drain) -> Result<(), Error> {
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0;
    loop {
        tokio::select! {
            () = stop.wait() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let transaction = client.transaction().await?;
        act(&transaction, round).await?;
        transaction.commit().await?;
        round += 1;
    }
}

async fn place_order(transaction: &Transaction<'_>) -> Result<(), Error> {
    let customer: i32 = fastrand::i32(1..=4);
    let cents: i64 = fastrand::i64(450..20_000);
    let order: i64 = transaction
        .query_one(
            "INSERT INTO orders (customer_id, total) VALUES ($1, $2::bigint / 100.0) RETURNING id",
            &[&customer, &cents],
        )
        .await?
        .get(0);
    for line in 1..=fastrand::i32(1..=3) {
        let product = fastrand::choice(PRODUCTS).copied().unwrap_or_default();
        let quantity = fastrand::i32(1..=4);
        let item = "INSERT INTO order_items VALUES ($1, $2, $3, $4)";
        transaction.execute(item, &[&order, &line, &product, &quantity]).await?;
    }
    Ok(())
}

async fn move_order(client: &Transaction<'_>) -> Result<(), Error> {
    let (from, to) = fastrand::choice(STATUSES).copied().unwrap_or_default();
    let next = "UPDATE orders SET status = $2 WHERE id = (SELECT id FROM orders WHERE status = $1 ORDER BY id LIMIT 1)";
    if client.execute(next, &[&from, &to]).await? == 0 {
        let any = "UPDATE orders SET status = 'paid' WHERE id = (SELECT min(id) FROM orders WHERE status = 'new')";
        client.execute(any, &[]).await?;
    }
    Ok(())
}

async fn tidy_up(client: &Transaction<'_>) -> Result<(), Error> {
    let old = "DELETE FROM orders WHERE id IN (SELECT id FROM orders ORDER BY id DESC OFFSET $1 LIMIT 2)
               OR id = (SELECT min(id) FROM orders WHERE status = 'delivered')";
    client.execute(old, &[&MOST_ORDERS]).await?;
    client.execute("SELECT pg_logical_emit_message(true, 'shop', 'tidied up')", &[]).await.map(drop)
}
