//! A publication FOR ALL TABLES publishes the log, too, and nothing can be left out of one: what an operator should know of
//! that, and the statement that makes one without the log.

use crate::postgres::{
    error::Result,
    publication::{self, Publication},
    replication::{identifier, literal},
    sql::{Sql, get, text},
};

/// The same notes for whoever runs the script.
pub(super) const IN_SCRIPT: &str = r#"DO $note$
DECLARE
    p record;
    what text;
    with_ text;
BEGIN
    FOR p IN SELECT b.*, b.pubname = s.publication AS own, to_jsonb(b) ->> 'pubgencols' = 's' AS generated
             FROM pg_publication b CROSS JOIN walcast.settings s WHERE b.puballtables ORDER BY b.pubname LOOP
        IF NOT p.own THEN
            RAISE NOTICE 'Publication "%" is FOR ALL TABLES: its subscribers get the log tables too.', p.pubname;
            CONTINUE;
        END IF;
        SELECT CASE WHEN current_setting('server_version_num')::int4 >= 150000
                    THEN 'TABLES IN SCHEMA ' || string_agg(DISTINCT '"' || replace(n.nspname, '"', '""') || '"', ', ')
                    ELSE 'TABLE ' || string_agg(DISTINCT format('%I.%I', n.nspname, c.relname), ', ') END INTO what
        FROM pg_publication_tables t JOIN pg_namespace m ON m.nspname = t.schemaname
        JOIN pg_class r ON r.relnamespace = m.oid AND r.relname = t.tablename
        JOIN pg_class c ON c.oid = coalesce(pg_partition_root(r.oid)::oid, r.oid)
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE t.pubname = p.pubname AND n.nspname <> 'walcast';
        with_ := format('publish = %L', concat_ws(', ', CASE WHEN p.pubinsert THEN 'insert' END,
                        CASE WHEN p.pubupdate THEN 'update' END, CASE WHEN p.pubdelete THEN 'delete' END,
                        CASE WHEN p.pubtruncate THEN 'truncate' END))
            || CASE WHEN p.pubviaroot THEN ', publish_via_partition_root = true' ELSE '' END
            || CASE WHEN p.generated THEN ', publish_generated_columns = stored' ELSE '' END;
        RAISE NOTICE 'Publication "%" is FOR ALL TABLES, so the log is decoded too (and then left out): about twice the volume on the slot. To convert: CREATE PUBLICATION % FOR % WITH (%); then, once "walcast status" shows the journal past that point, restart the hub with that publication and install again for it.',
            p.pubname, '"' || replace(p.pubname, '"', '""') || '_tables"', what, with_;
    END LOOP;
END $note$;
"#;

/// A note on each publication of the database that also publishes the log.
pub(super) async fn notes(sql: &Sql, publication: &str) -> Result<Vec<String>> {
    let rows = sql
        .query("SELECT p.pubname::text FROM pg_catalog.pg_publication p WHERE p.puballtables ORDER BY 1", &[])
        .await?;
    let mut notes = Vec::new();
    for row in rows {
        let name: String = get(&row, 0)?;
        notes.push(match publication::find(sql, &name).await?.filter(|_| name == publication) {
            Some(found) => {
                let new = format!("{name}_tables");
                format!(
                    "Publication {name:?} is FOR ALL TABLES, so the log is decoded too (and then left out): about twice the \
                     volume on the slot. To convert: {}; then, once `walcast status` shows the journal past that point, \
                     restart the hub with --publication {new} and run walcast logtables install --publication {new}.",
                    conversion(sql, &found, &new).await?
                )
            }
            None => format!("Publication {name:?} is FOR ALL TABLES: its subscribers get the log tables too."),
        });
    }
    Ok(notes)
}

/// The publication of everything but the log: by schema, so that later tables are in it, where the server knows that.
async fn conversion(sql: &Sql, publication: &Publication, new: &str) -> Result<String> {
    let (kind, what) = match sql.version() {
        150_000.. => ("TABLES IN SCHEMA", "n.nspname::text"),
        _ => ("TABLE", "pg_catalog.format('%I.%I', n.nspname, c.relname)"),
    };
    let statement = format!(
        "SELECT DISTINCT {what} FROM pg_catalog.pg_publication_tables t
         JOIN pg_catalog.pg_namespace m ON m.nspname = t.schemaname
         JOIN pg_catalog.pg_class p ON p.relnamespace = m.oid AND p.relname = t.tablename
         JOIN pg_catalog.pg_class c ON c.oid = coalesce(pg_catalog.pg_partition_root(p.oid)::oid, p.oid)
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE t.pubname = $1 AND n.nspname <> 'walcast' ORDER BY 1"
    );
    let mut names = Vec::new();
    for row in sql.query(&statement, &[text(&publication.name.as_str())]).await? {
        let name: String = get(&row, 0)?;
        names.push(if sql.version() >= 150_000 { identifier(&name) } else { name });
    }
    let operations = [
        (publication.insert, "insert"),
        (publication.update, "update"),
        (publication.delete, "delete"),
        (publication.truncate, "truncate"),
    ];
    let published: Vec<&str> = operations.into_iter().filter_map(|(is, name)| is.then_some(name)).collect();
    let mut with = format!("publish = {}", literal(&published.join(", ")));
    if publication.via_partition_root {
        with += ", publish_via_partition_root = true";
    }
    if publication.generated_columns {
        with += ", publish_generated_columns = stored";
    }
    Ok(format!("CREATE PUBLICATION {} FOR {kind} {} WITH ({with})", identifier(new), names.join(", ")))
}
