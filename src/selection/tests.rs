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

fn compile(filter: Filter) -> Selection {
    Selection::compile(Some(&filter), None).expect("a good filter")
}

#[test]
fn no_filter_is_everything_but_the_hubs_own() {
    let selection = Selection::compile(None, None).expect("no filter");
    assert!(selection.is_everything());
    assert!(selection.relation(&relation("public", "orders", &["id"])).passes(Operation::Truncate));
    assert!(selection.messages("anything") && selection.messages(""));
    assert!(!selection.relation(&relation("walcast", "log", &["id"])).selected);
    assert!(!selection.messages("walcast.heartbeat"));
}

#[test]
fn an_empty_filter_has_no_messages() {
    let selection = compile(Filter::default());
    assert!(!selection.is_everything());
    assert!(selection.relation(&relation("public", "orders", &["id"])).selected);
    assert!(!selection.messages("anything"));
    assert!(compile(Filter { message_prefixes: strings(&["audit*"]), ..Filter::default() }).messages("audit.x"));
}

#[test]
fn no_filter_reaches_the_hubs_own() {
    let everything = Filter { tables: strings(&["*"]), message_prefixes: strings(&["*"]), ..Filter::default() };
    let selection = compile(everything);
    assert!(!selection.relation(&relation("walcast", "log", &["id"])).selected);
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
    let plan = selection.relation(&relation("shop", "orders", &["id", "total", "extra", "note"]));
    assert_eq!(plan.columns, Some(vec![true, true, false, true]), "identity columns always come");
    assert!(plan.passes(Operation::Insert) && plan.passes(Operation::Delete));
    assert!(!plan.passes(Operation::Update) && !plan.passes(Operation::Truncate));
    assert_eq!(selection.relation(&relation("shop", "items", &["id", "note"])).columns, None, "all of them");
    assert!(!selection.relation(&relation("shop", "secret", &["id"])).selected);
    assert!(!selection.relation(&relation("public", "orders", &["id"])).selected);
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
    let orders = selection.relation(&relation("shop", "orders", &["id", "total", "note"]));
    assert_eq!((orders.columns.clone(), orders.passes(Operation::Insert)), (None, false));
    let items = selection.relation(&relation("shop", "items", &["id", "total", "note"]));
    assert_eq!((items.columns.clone(), items.passes(Operation::Delete)), (Some(vec![true, true, false]), true));
    let other = selection.relation(&relation("public", "x", &["id", "total", "note"]));
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
        predicate: "x = 1".to_owned(),
        message_prefixes: strings(&["[z"]),
        rules: vec![TableRule { tables: "a.b".to_owned(), columns: strings(&["a.b"]), ..TableRule::default() }],
        ..Filter::default()
    };
    let error = Selection::compile(Some(&filter), None).expect_err("a bad filter");
    assert_eq!(error.reason(), Reason::FilterInvalid);
    let paths: Vec<String> = error.violations().into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["filter.tables[2]", "filter.where", "filter.message_prefixes[0]", "filter.rules[0].columns[0]"]);
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
        assert!(selection.relation(&relation("shop", "orders", &["id"])).selected);
        assert!(!selection.relation(&relation("shop", "secret", &["id"])).selected);
    }
}
