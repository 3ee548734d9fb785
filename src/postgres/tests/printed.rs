//! Literals as the server prints them.

use super::cluster::Cluster;
use crate::{
    model::{Printed, Spelled},
    postgres::{
        printed::printed,
        sql::{Sql, get, text},
    },
};

async fn of(sql: &Sql, type_name: &str, literals: &[String]) -> Vec<Option<Printed>> {
    let row = sql.one("SELECT $1::regtype::oid", &[text(&type_name)]).await.unwrap();
    let type_oid = get(&row, 0).unwrap();
    let spelled = |text: &String| Spelled { type_oid, type_modifier: -1, text: text.clone() };
    printed(sql, &literals.iter().map(spelled).collect::<Vec<_>>()).await.unwrap()
}

async fn one(sql: &Sql, type_name: &str, literal: &str) -> Option<Printed> {
    of(sql, type_name, &[literal.to_owned()]).await.remove(0)
}

fn printed_as(text: &str) -> Option<Printed> {
    Some(Printed::As(text.to_owned()))
}

/// Whose rights would be the hub's.
#[tokio::test]
async fn no_function_of_the_tables_owner_is_called() {
    let cluster = Cluster::start("", "").await;
    let sql = cluster.sql().await;
    sql.batch(
        "CREATE TYPE mood AS ENUM ('sad', 'so so');
         CREATE FUNCTION is_fine(text) RETURNS bool LANGUAGE sql AS $$SELECT set_config('own.code', 'check', false) <> ''$$;
         CREATE FUNCTION as_mood(text) RETURNS mood LANGUAGE sql AS $$SELECT 'sad'::public.mood FROM set_config('own.code', 'cast', false)$$;
         CREATE CAST (text AS mood) WITH FUNCTION as_mood(text);
         CREATE DOMAIN felt AS mood CHECK (is_fine(VALUE::text)); CREATE DOMAIN felt_lately AS felt;
         CREATE DOMAIN bits AS bit(3); CREATE TYPE pair AS (a int, f felt); CREATE TYPE plain AS (a int, m mood)",
    )
    .await
    .unwrap();
    for of_mood in ["mood", "felt", "felt_lately"] {
        assert_eq!(one(&sql, of_mood, "so so").await, printed_as("so so"), "{of_mood}");
        assert!(matches!(one(&sql, of_mood, "soso").await, Some(Printed::Refused(_))), "{of_mood}");
    }
    assert_eq!(one(&sql, "bits", "10").await, printed_as("100"), "the modifier is the domain's");
    assert_eq!(one(&sql, "plain", "( 1 ,sad)").await, printed_as("(1,sad)"));
    for of_domain in ["felt[]", "pair", "pair[]"] {
        assert_eq!(one(&sql, of_domain, "{}").await, None, "{of_domain}");
    }
    let row = sql.one("SELECT current_setting('own.code', true)", &[]).await.unwrap();
    assert_eq!(get::<Option<&str>>(&row, 0).unwrap(), None);
}

#[tokio::test]
async fn what_is_refused_is_found_and_the_session_stays_as_it_was() {
    let cluster = Cluster::start("", "").await;
    let sql = cluster.sql().await;
    sql.batch(
        "SET DateStyle = 'SQL, DMY'; SET standard_conforming_strings = off; CREATE TYPE public.mood AS ENUM ('ok')",
    )
    .await
    .unwrap();
    assert_eq!(one(&sql, "date[]", "{2024-02-29}").await, printed_as("{2024-02-29}"));
    assert_eq!(one(&sql, "text[]", r#"{ "a\\b",o'c\\' }"#).await, printed_as(r#"{"a\\b","o'c\\'"}"#));
    assert!(matches!(one(&sql, "text[]", "{\0}").await, Some(Printed::Refused(_))));

    let mut literals: Vec<String> = (0..1000).map(|n| format!("{{ {n} }}")).collect();
    literals[700] = "{none}".into();
    let found = of(&sql, "int4[]", &literals).await;
    assert!(matches!(&found[700], Some(Printed::Refused(why)) if why.contains("none")), "{:?}", found[700]);
    let others = found.iter().enumerate().filter(|(number, _)| *number != 700);
    assert!({ others }.all(|(number, found)| *found == printed_as(&format!("{{{number}}}"))), "{found:?}");

    let wrong: Vec<String> = (0..1000).map(|n| format!("not ok {n}")).collect();
    let found = of(&sql, "mood", &wrong).await;
    assert_eq!(found.iter().flatten().filter(|found| matches!(found, Printed::Refused(_))).count(), 10);
    assert_eq!(found.iter().flatten().count(), 10, "of the others nothing is said");

    let row = sql
        .one("SELECT concat_ws(' ', current_setting('DateStyle'), current_setting('statement_timeout'), current_schemas(false))", &[])
        .await
        .unwrap();
    assert_eq!(get::<&str>(&row, 0).unwrap(), "SQL, DMY 0 {public}");
}
