use super::*;
use crate::{
    model::{Column, Operation, RelationId, ReplicaIdentity},
    reason::{Classified, Reason},
};

fn relation(schema: &str, table: &str, columns: &[&str]) -> Relation {
    let column = |(index, name): (usize, &&str)| Column {
        name: (*name).to_owned(),
        type_oid: 25,
        type_name: "text".to_owned(),
        type_modifier: -1,
        in_identity: index == 0,
    };
    Relation {
        id: RelationId(1),
        oid: 1,
        schema: schema.to_owned(),
        table: table.to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: columns.iter().enumerate().map(column).collect(),
    }
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

fn tables(items: &[&str]) -> Filter {
    Filter { tables: strings(items), ..Filter::default() }
}

fn plan(selection: &Selection, relation: &Relation) -> RelationPlan {
    selection.relation(relation).expect("a predicate that fits, or none")
}

fn compile(filter: Filter) -> Selection {
    Selection::compile(Some(&filter), None).expect("a good filter")
}

#[test]
fn no_filter_is_everything_but_the_hubs_own() {
    let selection = Selection::compile(None, None).expect("no filter");
    assert!(selection.is_everything());
    assert!(plan(&selection, &relation("public", "orders", &["id"])).passes(Operation::Truncate));
    assert!(selection.messages("anything") && selection.messages(""));
    assert!(!plan(&selection, &relation("walcast", "log", &["id"])).selected);
    assert!(!selection.messages("walcast.heartbeat"));
}

#[test]
fn an_empty_filter_has_no_messages() {
    let selection = compile(Filter::default());
    assert!(!selection.is_everything());
    assert!(plan(&selection, &relation("public", "orders", &["id"])).selected);
    assert!(!selection.messages("anything"));
    assert!(compile(Filter { message_prefixes: strings(&["audit*"]), ..Filter::default() }).messages("audit.x"));
}

#[test]
fn no_filter_reaches_the_hubs_own() {
    let everything = Filter { tables: strings(&["*"]), message_prefixes: strings(&["*"]), ..Filter::default() };
    let selection = compile(everything);
    assert!(!plan(&selection, &relation("walcast", "log", &["id"])).selected);
    assert!(!selection.messages("walcast.heartbeat"));
    assert!(selection.messages("walcastic"));
}

#[test]
fn tables_columns_and_operations() {
    let selection = compile(Filter {
        tables: strings(&["shop.*"]),
        exclude_tables: strings(&["*.secret"]),
        operations: vec![Operation::Insert, Operation::Delete],
        columns: strings(&["shop.orders.total", "*.note"]),
        ..Filter::default()
    });
    let orders = plan(&selection, &relation("shop", "orders", &["id", "total", "extra", "note"]));
    assert_eq!(orders.columns, Some(vec![true, true, false, true]), "identity columns always come");
    assert!(orders.passes(Operation::Insert) && orders.passes(Operation::Delete));
    assert!(!orders.passes(Operation::Update) && !orders.passes(Operation::Truncate));
    assert_eq!(plan(&selection, &relation("shop", "items", &["id", "note"])).columns, None, "all of them");
    assert!(!plan(&selection, &relation("shop", "secret", &["id"])).selected);
    assert!(!plan(&selection, &relation("public", "orders", &["id"])).selected);
}

#[test]
fn the_first_rule_that_matches_holds_instead() {
    let rule = |tables: &str, columns: &[&str], operations: &[Operation]| TableRule {
        tables: tables.to_owned(),
        columns: strings(columns),
        operations: operations.to_vec(),
        ..TableRule::default()
    };
    let selection = compile(Filter {
        columns: strings(&["*.note"]),
        operations: vec![Operation::Insert],
        rules: vec![rule("shop.orders", &[], &[Operation::Update]), rule("shop.*", &["*.total"], &[])],
        ..Filter::default()
    });
    let orders = plan(&selection, &relation("shop", "orders", &["id", "total", "note"]));
    assert_eq!((orders.columns.clone(), orders.passes(Operation::Insert)), (None, false));
    let items = plan(&selection, &relation("shop", "items", &["id", "total", "note"]));
    assert_eq!((items.columns.clone(), items.passes(Operation::Delete)), (Some(vec![true, true, false]), true));
    let other = plan(&selection, &relation("public", "x", &["id", "total", "note"]));
    assert_eq!((other.columns.clone(), other.passes(Operation::Delete)), (Some(vec![true, false, true]), false));
}

#[test]
fn origins() {
    let selection = compile(Filter { origins: strings(&["", "east"]), ..Filter::default() });
    assert!(
        selection.filters_origins() && selection.origin("") && selection.origin("east") && !selection.origin("west")
    );
    assert!(compile(Filter::default()).origin("west"));
}

#[test]
fn violations_name_their_field() {
    let filter = Filter {
        tables: strings(&["a.b", "a.*", "nodot"]),
        predicate: "x = 1 AND".to_owned(),
        message_prefixes: strings(&["[z"]),
        rules: vec![
            TableRule { tables: "a.b".to_owned(), columns: strings(&["a.b"]), ..TableRule::default() },
            TableRule { tables: "a.c".to_owned(), predicate: "y ==".to_owned(), ..TableRule::default() },
        ],
        ..Filter::default()
    };
    let error = Selection::compile(Some(&filter), None).expect_err("a bad filter");
    assert_eq!(error.reason(), Reason::FilterInvalid);
    let violations = error.violations();
    let paths: Vec<&str> = violations.iter().map(|(path, _)| path.as_str()).collect();
    let expected = [
        "filter.tables[2]",
        "filter.where",
        "filter.message_prefixes[0]",
        "filter.rules[0].columns[0]",
        "filter.rules[1].where",
    ];
    assert_eq!(paths, expected);
    assert!(violations[1].1.contains("character offset 9"), "{violations:?}");
    assert!(violations[4].1.contains("character offset 3"), "{violations:?}");
}

#[test]
fn the_canonical_text_knows_no_order_and_no_repeats() {
    let one = Filter { columns: strings(&["a.b.c"]), ..tables(&["a.*", "b.*", "a.*"]) };
    let two = Filter { columns: strings(&["a.b.c"]), ..tables(&["b.*", "a.*"]) };
    assert_eq!(compile(one.clone()).canonical(), compile(two.clone()).canonical());
    assert_eq!(compile(one).filter_hash(), compile(two).filter_hash());
    let different = [
        tables(&["a.*,1:b"]),
        tables(&["a.*", "b.*"]),
        Filter { exclude_tables: strings(&["a.*", "b.*"]), ..Filter::default() },
        Filter::default(),
        Filter { origins: strings(&[""]), ..Filter::default() },
    ];
    let mut texts: Vec<String> = different.into_iter().map(|filter| compile(filter).canonical().to_owned()).collect();
    texts.push(Selection::compile(None, None).expect("no filter").canonical().to_owned());
    texts.push(Selection::compile(None, Some(&[])).expect("no rights").canonical().to_owned());
    let count = texts.len();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), count);
}

#[test]
fn the_hash_is_the_one_that_checkpoints_hold() {
    assert_eq!(Selection::compile(None, None).expect("no filter").filter_hash(), 0xa0a4_4ed8_cfc3_2b7e);
    let right = strings(&["a.*"]);
    let restricted = Selection::compile(Some(&tables(&["a.*"])), Some(&right)).expect("a good filter");
    assert_eq!(restricted.filter_hash(), compile(tables(&["a.*"])).filter_hash());
    assert_ne!(restricted.canonical(), compile(tables(&["a.*"])).canonical());
}

fn published() -> Vec<(String, String)> {
    [("shop", "orders"), ("shop", "secret"), ("walcast", "log")].map(|(s, t)| (s.to_owned(), t.to_owned())).to_vec()
}

fn check(filter: Filter, rights: Option<&[String]>) -> Result<(), Error> {
    Selection::compile(Some(&filter), rights)?.check(Some(&published()), |_| false)
}

#[test]
fn exact_names_must_be_published() {
    assert_eq!(check(tables(&["shop.orders", "none.*"]), None), Ok(()));
    assert_eq!(check(tables(&["shop.gone"]), None), Err(Error::NotPublished("shop.gone".to_owned())));
    assert_eq!(check(tables(&["walcast.log"]), None), Err(Error::NotPublished("walcast.log".to_owned())));
    let selection = compile(tables(&["shop.orders"]));
    assert_eq!(selection.check(None, |_| false), Err(Error::Unverified("shop.orders".to_owned())));
    assert_eq!(selection.check(None, |table| table == "shop.orders"), Ok(()));
}

#[test]
fn rights_bound_what_a_filter_may_name() {
    let rights = strings(&["shop.orders"]);
    let denied = Err(Error::Denied("shop.secret".to_owned()));
    assert_eq!(check(tables(&["shop.orders"]), Some(&rights)), Ok(()));
    assert_eq!(check(tables(&["shop.secret"]), Some(&rights)), denied);
    assert_eq!(check(tables(&["shop.*"]), Some(&rights)), denied);
    assert_eq!(check(tables(&["shop.o*"]), Some(&rights)), Ok(()));
    assert_eq!(check(tables(&["*"]), Some(&strings(&["shop.*"]))), Ok(()), "the hub's own tables do not count");
    let excluding = Filter { exclude_tables: strings(&["*.secret"]), ..tables(&["shop.*"]) };
    assert_eq!(check(excluding, Some(&rights)), Ok(()));
    assert_eq!(check(Filter::default(), Some(&rights)), Ok(()), "everything it may read");

    for filter in [None, Some(&Filter::default())] {
        let selection = Selection::compile(filter, Some(&rights)).expect("a good filter");
        assert!(!selection.is_everything());
        assert!(plan(&selection, &relation("shop", "orders", &["id"])).selected);
        assert!(!plan(&selection, &relation("shop", "secret", &["id"])).selected);
    }
}

fn filtered(predicate: &str) -> Filter {
    Filter { predicate: predicate.to_owned(), ..Filter::default() }
}

#[test]
fn predicates_are_checked_against_each_relation() {
    let mut orders = relation("shop", "orders", &["id", "state"]);
    orders.replica_identity = ReplicaIdentity::Full;
    let items = relation("shop", "items", &["id", "size"]);
    let selection = compile(filtered("state = 'paid'"));
    assert!(selection.has_predicates() && !compile(Filter::default()).has_predicates());
    assert!(plan(&selection, &orders).predicate.is_some());
    let Err(Error::Invalid(violations)) = selection.check_relations([&orders, &items].map(|table| (table, None)))
    else {
        panic!("fits")
    };
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].0, "filter.where");
    assert!(
        violations[0].1.starts_with("table shop.items has") && violations[0].1.contains("offset 0"),
        "{violations:?}"
    );

    let rule =
        TableRule { tables: "shop.items".to_owned(), predicate: "size IS NULL".to_owned(), ..Default::default() };
    let error = compile(Filter { rules: vec![rule.clone()], ..filtered("state = 'paid'") })
        .check_relations([&orders, &items].map(|table| (table, None)))
        .expect_err("the identity of items is its key");
    assert_eq!(error.violations()[0].0, "filter.rules[0].where");
    assert!(error.to_string().contains("ALTER TABLE shop.items REPLICA IDENTITY FULL"), "{error}");
    let inserts = TableRule { operations: vec![Operation::Insert, Operation::Truncate], ..rule };
    let selection = compile(Filter { rules: vec![inserts], ..filtered("state = 'paid'") });
    assert_eq!(
        selection.check_relations([&orders, &items].map(|table| (table, None))),
        Ok(()),
        "UPDATE and DELETE are not selected"
    );
}

#[test]
fn a_predicate_in_many_tables_is_told_of_a_few() {
    let all: Vec<Relation> = (0..50).map(|number| relation("t", &format!("t{number}"), &["id"])).collect();
    let error = compile(filtered("no_such = 1"))
        .check_relations(all.iter().map(|table| (table, None)))
        .expect_err("no such column");
    assert_eq!(error.violations().len(), 10);
    assert!(error.to_string().ends_with("40 more tables do not fit either"), "{error}");
}

#[test]
fn the_canonical_text_knows_no_spelling_of_predicates() {
    let text = |predicate: &str| compile(filtered(predicate)).canonical().to_owned();
    assert_eq!(text("state='paid' and  Total>5"), text("(State = 'paid') AND (total > 5)"));
    assert_ne!(text("state = 'paid'"), text("state = 'Paid'"));
    assert_ne!(text("state = 'paid'"), text("\"State\" = 'paid'"));
    let rule = |predicate: &str| {
        let rule = TableRule { tables: "a.b".to_owned(), predicate: predicate.to_owned(), ..Default::default() };
        compile(Filter { rules: vec![rule], ..Filter::default() }).filter_hash()
    };
    assert_eq!(rule("a IS NULL"), rule("(a is  null)"));
    assert_ne!(rule("a IS NULL"), rule("a IS NOT NULL"));
}

/// A request of 64 KiB could hold 16,000 globs, which took 115 MB for as long as their stream was open.
#[test]
fn globs_are_few_and_short() {
    let many = |count: usize, glob: &str| tables(&vec![glob; count]);
    let refused = |filter: &Filter| match Selection::compile(Some(filter), None) {
        Err(Error::Invalid(violations)) => violations,
        other => panic!("{other:?}"),
    };
    for (fits, filter, path) in [
        (many(256, "a*"), many(300, "a*"), "filter.tables[256]"),
        (many(1, &"a*".repeat(8 << 10)), many(1, &"a*".repeat(9 << 10)), "filter.tables[0]"),
        (
            many(20_000, "a.b"),
            Filter { message_prefixes: strings(&["b*"]), ..many(256, "*") },
            "filter.message_prefixes[0]",
        ),
    ] {
        assert!(Selection::compile(Some(&fits), None).is_ok());
        let violations = refused(&filter);
        assert_eq!((violations.len(), violations[0].0.as_str()), (1, path));
        assert!(violations[0].1.contains("256 globs"), "{violations:?}");
    }
    let violations = refused(&many(5000, "[z"));
    assert_eq!(violations.len(), 20);
    assert!(violations[19].1.ends_with("; 237 more fields are wrong"), "{}", violations[19].1);
}
